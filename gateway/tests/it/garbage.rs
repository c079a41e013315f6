//! Everything that strangers write is read without a panic.

mod properties;

use proptest::{collection::vec, prelude::*};

use self::properties::{events, journal, key, name, registration, request, token};

/// Anything, and things that are almost right.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop_oneof![
        vec(any::<u8>(), 0..40),
        prop::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
    ];
    vec(pieces, 0..12).prop_map(|pieces| pieces.concat())
}

const PIECES: &[&str] = &[
    "hvk_",
    "_",
    "0123456789abcdef",
    "eyJhbGciOiJub25lIn0",
    ".",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "-0",
    "1e999",
    "9223372036854775808",
    "NaN",
    "\"model\":\"m\"",
    "\"messages\":",
    "\"role\":\"user\"",
    "\"content\":",
    "\"stream\":true",
    "\"tools\":[]",
    "\"url\":",
    "http://",
    "127.0.0.1:1",
    "[::1]:1",
    "0.0.0.0:9",
    "@",
    "169.254.169.254:80",
    "data:",
    "data: ",
    "event: x",
    "\r\n",
    "\n\n",
    "\r",
    "..",
    "/",
    "-",
    "\u{202e}",
    "\u{0}",
    "{\"seq\":1,",
    "\"prev\":",
    "\"id\":\"a\"",
    "\"facts\":{}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_key_is_read_without_a_panic(bytes in bytes()) {
        key(&bytes);
    }

    #[test]
    fn a_token_is_read_without_a_panic(bytes in bytes()) {
        token(&bytes);
    }

    #[test]
    fn a_request_is_read_without_a_panic(bytes in bytes()) {
        request(&bytes);
    }

    #[test]
    fn a_stream_of_events_is_read_without_a_panic(bytes in bytes()) {
        events(&bytes);
    }

    #[test]
    fn a_registration_is_read_without_a_panic(bytes in bytes()) {
        registration(&bytes);
    }

    #[test]
    fn a_name_is_read_without_a_panic(bytes in bytes()) {
        name(&bytes);
    }

    #[test]
    fn a_journal_is_verified_without_a_panic(bytes in bytes(), at in any::<[u8; 3]>()) {
        journal(&[&at, bytes.as_slice()].concat());
    }
}
