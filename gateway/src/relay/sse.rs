//! Server-sent events on their way through: bytes in, whole `data:` payloads out, however the bytes are split.
//!
//! Only `data` passes; comments, `event`, `id` and `retry` stop here (WHATWG HTML, section 9.2.6).

use bytes::{Bytes, BytesMut};

/// The largest event a worker may send, in bytes.
pub const LARGEST_EVENT: usize = 256 * 1024;

/// Why the bytes are no event stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An event above [`LARGEST_EVENT`].
    #[error("the worker sent an event of more than 256 KiB")]
    TooLarge,
    /// Bytes that are no UTF-8.
    #[error("the worker sent bytes that are not UTF-8")]
    NotUtf8,
}

/// Collects bytes until events are whole.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// How far `buffer` was searched for a line's end.
    searched: usize,
    /// Whether lines before the rest were taken out of `buffer`.
    taken: bool,
    data: Option<BytesMut>,
}

impl Decoder {
    /// Adds bytes as they came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether an event has begun and is not whole.
    pub fn is_mid_event(&self) -> bool {
        self.data.is_some() || !self.buffer.is_empty()
    }

    /// The next whole event's data, if there is one.
    pub fn next_event(&mut self) -> Result<Option<Bytes>, Malformed> {
        loop {
            let Some(line) = self.next_line()? else { return Ok(None) };
            if line.is_empty() {
                match self.data.take() {
                    Some(data) if std::str::from_utf8(&data).is_err() => return Err(Malformed::NotUtf8),
                    Some(data) => return Ok(Some(data.freeze())),
                    None => continue,
                }
            }
            let Some(value) = line.strip_prefix(b"data".as_slice()).and_then(value_of) else {
                continue;
            };
            match &mut self.data {
                Some(data) => {
                    data.extend_from_slice(b"\n");
                    data.extend_from_slice(value);
                }
                None => self.data = Some(BytesMut::from(value)),
            }
            if self.data.as_ref().is_some_and(|data| data.len() > LARGEST_EVENT) {
                return Err(Malformed::TooLarge);
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<BytesMut>, Malformed> {
        let Some(found) = self.buffer[self.searched..]
            .iter()
            .position(|b| matches!(b, b'\n' | b'\r'))
        else {
            self.searched = self.buffer.len();
            // The rest alone: it would keep the memory of all that came before it, for as long as a slow client likes.
            if std::mem::take(&mut self.taken) {
                self.buffer = BytesMut::from(&self.buffer[..]);
            }
            return if self.buffer.len() > LARGEST_EVENT {
                Err(Malformed::TooLarge)
            } else {
                Ok(None)
            };
        };
        let end = self.searched + found;
        let mut length = 1;
        if self.buffer[end] == b'\r' {
            match self.buffer.get(end + 1) {
                Some(b'\n') => length = 2,
                Some(_) => {}
                // The \n of a \r\n may still be on its way.
                None => {
                    self.searched = end;
                    return Ok(None);
                }
            }
        }
        let mut line = self.buffer.split_to(end + length);
        line.truncate(end);
        self.searched = 0;
        self.taken = true;
        Ok(Some(line))
    }
}

/// What follows a field's name: nothing, or a colon and at most one space.
fn value_of(rest: &[u8]) -> Option<&[u8]> {
    if rest.is_empty() {
        return Some(rest);
    }
    let value = rest.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(parts: &[&[u8]]) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for part in parts {
            decoder.feed(part);
            while let Some(event) = decoder.next_event().unwrap() {
                found.push(String::from_utf8(event.to_vec()).unwrap());
            }
        }
        found
    }

    const STREAM: &str =
        ": hi\nevent: x\r\nid: 7\ndata: {\"a\":\"ü\"}\n\ndata:one\r\ndata: two\r\n\r\nretry: 3\n\ndata: [DONE]\n\n";

    #[test]
    fn events_are_the_same_however_the_bytes_are_split() {
        let whole = events(&[STREAM.as_bytes()]);
        assert_eq!(whole, ["{\"a\":\"ü\"}", "one\ntwo", "[DONE]"]);
        for split in 0..STREAM.len() {
            let (a, b) = STREAM.as_bytes().split_at(split);
            assert_eq!(events(&[a, b]), whole, "split at {split}");
        }
        let single: Vec<&[u8]> = STREAM.as_bytes().chunks(1).collect();
        assert_eq!(events(&single), whole);
    }

    /// Numbers that look random and are the same in every run.
    fn numbers() -> impl FnMut(usize) -> usize {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap() % below
        }
    }

    #[test]
    fn what_is_written_is_read_again_whatever_it_says_and_however_it_is_split() {
        let mut random = numbers();
        let words = [
            "data: ",
            "[DONE]",
            "\u{1f44b}\u{1f3fd}",
            "\\n",
            "\\ud83d",
            ":",
            " ",
            "é",
            "{}",
            "id: 7",
            "\u{2028}",
            "\u{feff}",
            "",
        ];
        let noise = ["", ": ping\n", ":\n\n", "event: x\n", "retry: 5\n\n", "\n", "id\n"];
        let ends = ["\n", "\r\n", "\r"];
        for _ in 0..500 {
            let (mut stream, mut said) = (String::new(), Vec::new());
            for _ in 0..random(6) {
                let text: String = (0..random(5)).map(|_| words[random(words.len())]).collect();
                let end = ends[random(ends.len())];
                stream += &noise[random(noise.len())].replace('\n', end);
                stream += &["data: ", &text, end, end].concat();
                said.push(text);
            }
            // A bare \r at the very end may be half of a \r\n.
            stream += ":\n";
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = (0..random(8)).map(|_| random(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            assert_eq!(events(&parts), said, "{stream:?} cut at {cuts:?}");
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(events(&single), said, "{stream:?}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic_and_none_are_kept_for_ever() {
        let mut random = numbers();
        for _ in 0..200 {
            let mut decoder = Decoder::default();
            for _ in 0..random(20) {
                let bytes: Vec<u8> = (0..random(40)).map(|_| b"data: \r\n\xff{}\"x"[random(13)]).collect();
                decoder.feed(&bytes);
                while let Ok(Some(data)) = decoder.next_event() {
                    assert!(std::str::from_utf8(&data).is_ok());
                }
            }
            assert!(decoder.buffer.len() <= LARGEST_EVENT);
        }
    }

    #[test]
    fn fields_that_only_begin_like_data_are_not_data() {
        assert_eq!(events(&[b"database: x\n\ndata\n\n"]), [""]);
    }

    #[test]
    fn an_endless_event_is_refused_before_it_fills_the_memory() {
        let mut decoder = Decoder::default();
        decoder.feed(&vec![b'x'; LARGEST_EVENT + 1]);
        assert_eq!(decoder.next_event(), Err(Malformed::TooLarge));
        let mut decoder = Decoder::default();
        let line = [b"data: ".as_slice(), &vec![b'x'; LARGEST_EVENT / 2], b"\n"].concat();
        for _ in 0..3 {
            decoder.feed(&line);
        }
        assert_eq!(decoder.next_event(), Err(Malformed::TooLarge));
    }

    #[test]
    fn bytes_that_are_no_utf8_are_refused() {
        let mut decoder = Decoder::default();
        decoder.feed(b"data: \xff\xfe\n\n");
        assert_eq!(decoder.next_event(), Err(Malformed::NotUtf8));
    }

    #[test]
    fn half_an_event_is_known_as_such() {
        let mut decoder = Decoder::default();
        decoder.feed(b"data: a\n\n");
        decoder.next_event().unwrap();
        assert!(!decoder.is_mid_event());
        decoder.feed(b"data: b\n");
        assert_eq!(decoder.next_event(), Ok(None));
        assert!(decoder.is_mid_event());
    }
}
