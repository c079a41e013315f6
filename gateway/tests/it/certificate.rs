//! A certificate that signs itself, as small as X.509 lets it be (RFC 5280): for one name and one address.

use std::net::{IpAddr, Ipv4Addr};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// A certificate and its private key, in PEM.
pub struct Certificate {
    pub certificate: String,
    pub key: String,
}

impl Certificate {
    /// One for this address, and for `localhost`; `serial` tells it from others.
    pub fn new(address: IpAddr, serial: u8) -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref()).unwrap();
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let algorithm = sequence(&[tlv(0x06, ECDSA_WITH_SHA256)]);
        let name = format!("hive test {serial}");
        let name = sequence(&[tlv(
            0x31,
            &sequence(&[tlv(0x06, COMMON_NAME), tlv(0x0c, name.as_bytes())]),
        )]);
        let address = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let here = Ipv4Addr::LOCALHOST.octets();
        let names = sequence(&[tlv(0x82, b"localhost"), tlv(0x87, &here), tlv(0x87, &address)]);
        let extension = sequence(&[tlv(0x06, SUBJECT_ALT_NAME), tlv(0x04, &names)]);
        let body = sequence(&[
            tlv(0xa0, &tlv(0x02, &[2])),
            tlv(0x02, &[serial]),
            algorithm.clone(),
            name.clone(),
            sequence(&[tlv(0x17, b"200101000000Z"), tlv(0x17, b"491231235959Z")]),
            name,
            public.as_ref().to_vec(),
            tlv(0xa3, &sequence(&[extension])),
        ]);
        let signature = key.sign(&SystemRandom::new(), &body).unwrap();
        let signature = tlv(0x03, &[&[0], signature.as_ref()].concat());
        Self {
            certificate: pem("CERTIFICATE", &sequence(&[body, algorithm, signature])),
            key: pem("PRIVATE KEY", pkcs8.as_ref()),
        }
    }
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// Tag, length and value of DER.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let head = match length {
        0..0x80 => vec![tag, low],
        0x80..0x100 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head, value.to_vec()].concat()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(der)
    )
}
