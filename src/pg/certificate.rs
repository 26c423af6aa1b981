//! The three fields of an X.509 certificate that rustls does not hand out: its signature
//! algorithm, its validity and its public key. Reads DER (X.690, RFC 5280 §4.1) without being able
//! to read out of bounds; decides nothing.

use rustls::pki_types::SubjectPublicKeyInfoDer;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// What was found; everything borrows from the certificate.
pub(super) struct Certificate<'a> {
    /// The contents of the outer signatureAlgorithm's OBJECT IDENTIFIER.
    signature_algorithm: &'a [u8],
    /// notAfter, as a UTCTime or GeneralizedTime.
    not_after: Element<'a>,
    /// The whole SubjectPublicKeyInfo.
    public_key: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// `None` if this is not the DER of a certificate.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = Reader(Reader(der).expect(SEQUENCE)?.contents);
        let mut tbs = Reader(outer.expect(SEQUENCE)?.contents);
        let signature_algorithm = Reader(outer.expect(SEQUENCE)?.contents)
            .expect(OID)?
            .contents;
        if tbs.0.first() == Some(&EXPLICIT_VERSION) {
            tbs.next()?;
        }
        for _serial_signature_issuer in 0..3 {
            tbs.next()?;
        }
        let mut validity = Reader(tbs.expect(SEQUENCE)?.contents);
        validity.next()?;
        let not_after = validity.next()?;
        let _subject = tbs.next()?;
        Some(Self {
            signature_algorithm,
            not_after,
            public_key: tbs.expect(SEQUENCE)?.whole,
        })
    }

    /// For a certificate that webpki refuses to parse (X.509 version 1).
    pub(super) fn public_key(&self) -> SubjectPublicKeyInfoDer<'a> {
        SubjectPublicKeyInfoDer::from(self.public_key)
    }

    /// The last moment of validity as `YYYYMMDDHHMMSS`, which sorts as time does.
    pub(super) fn not_after(&self) -> Option<String> {
        let text = str::from_utf8(self.not_after.contents)
            .ok()?
            .strip_suffix('Z')?;
        let century = match (self.not_after.tag, text.len()) {
            (GENERALIZED_TIME, 14) => "",
            // RFC 5280 §4.1.2.5.1: two digits below 50 are of this century.
            (UTC_TIME, 12) if text < "50" => "20",
            (UTC_TIME, 12) => "19",
            _ => return None,
        };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| format!("{century}{text}"))
    }
}

/// The channel binding `tls-server-end-point` (RFC 5929 §4.1): the certificate's hash by its own
/// signature's algorithm, SHA-256 instead of MD5 and SHA-1. `None` if that has no hash of its own
/// (Ed25519, with which the server fails, too) or hides it in parameters (RSASSA-PSS).
pub(super) fn server_end_point(der: &[u8]) -> Option<Vec<u8>> {
    Some(match Certificate::parse(der)?.signature_algorithm {
        SHA224_RSA | SHA224_ECDSA => Sha224::digest(der).to_vec(),
        MD5_RSA | SHA1_RSA | SHA1_ECDSA | SHA256_RSA | SHA256_ECDSA => Sha256::digest(der).to_vec(),
        SHA384_RSA | SHA384_ECDSA => Sha384::digest(der).to_vec(),
        SHA512_RSA | SHA512_ECDSA => Sha512::digest(der).to_vec(),
        _ => return None,
    })
}

// RFC 8017 appendix A.2.4: 1.2.840.113549.1.1.x; RFC 5758 §3.2: 1.2.840.10045.4.x.
const MD5_RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04";
const SHA1_RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05";
const SHA256_RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b";
const SHA384_RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c";
const SHA512_RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d";
const SHA224_RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e";
const SHA1_ECDSA: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x01";
const SHA224_ECDSA: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x01";
const SHA256_ECDSA: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x02";
const SHA384_ECDSA: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x03";
const SHA512_ECDSA: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x04";

// DER tags.
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const EXPLICIT_VERSION: u8 = 0xa0;

#[derive(Clone, Copy)]
struct Element<'a> {
    tag: u8,
    /// Tag and length included.
    whole: &'a [u8],
    contents: &'a [u8],
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn expect(&mut self, tag: u8) -> Option<Element<'a>> {
        self.next().filter(|element| element.tag == tag)
    }

    fn next(&mut self) -> Option<Element<'a>> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (len, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // A length of one to four bytes; no certificate is longer.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (
                    bytes
                        .iter()
                        .fold(0, |len, &byte| len << 8 | usize::from(byte)),
                    rest,
                )
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(len)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Some(Element {
            tag,
            whole,
            contents,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_digit_years_fall_into_the_right_century() {
        let not_after = |tag, contents| {
            let not_after = Element {
                tag,
                whole: &[],
                contents,
            };
            let certificate = Certificate {
                signature_algorithm: &[],
                not_after,
                public_key: &[],
            };
            certificate.not_after()
        };
        let later = not_after(UTC_TIME, b"491231235959Z");
        assert_eq!(later.as_deref(), Some("20491231235959"));
        let earlier = not_after(UTC_TIME, b"500101000000Z");
        assert_eq!(earlier.as_deref(), Some("19500101000000"));
        let general = not_after(GENERALIZED_TIME, b"20500101000000Z");
        assert_eq!(general.as_deref(), Some("20500101000000"));
        assert_eq!(not_after(UTC_TIME, b"4912312359+1Z"), None);
        assert_eq!(not_after(OID, b"491231235959Z"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(der in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Certificate::parse(&der);
            let nested: Vec<u8> = [&[SEQUENCE, 0x81, der.len() as u8][..], &der].concat();
            let _ = Certificate::parse(&nested);
        }
    }
}
