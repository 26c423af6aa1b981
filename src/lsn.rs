//! A position in the write-ahead log. Opaque but for its order and distances: LSN arithmetic is how
//! others lose events.

use std::fmt;
use std::str::FromStr;

/// A log sequence number: a byte position in the write-ahead log of one timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`: no position. As the start of `START_REPLICATION` it means "where the slot stands".
    pub const ZERO: Self = Self(0);

    /// From the eight bytes of the protocol.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// For the eight bytes of the protocol.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Bytes of WAL from `earlier` to `self`; 0 if `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not `XXXXXXXX/XXXXXXXX` (`pg_lsn_in`: one to eight hexadecimal digits each).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN (expected two hexadecimal numbers as in 16/B374D848)")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// One half of the text form. `u32::from_str_radix` alone would take a sign.
fn half(digits: &str) -> Result<u64, ParseLsnError> {
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if !plain {
        return Err(ParseLsnError);
    }
    u64::from_str_radix(digits, 16).map_err(|_| ParseLsnError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_two_halves_without_leading_zeros() {
        assert_eq!(Lsn::new(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!("16/b374d848".parse(), Ok(Lsn::new(0x16_B374_D848)));
        assert_eq!(Lsn::ZERO.to_string(), "0/0");
    }

    #[test]
    fn text_that_postgres_would_refuse_is_refused() {
        for text in [
            "",
            "/",
            "1/",
            "/1",
            "1",
            "+1/1",
            "1/-1",
            "0x1/1",
            "1/1/1",
            "1/123456789",
            "G/0",
            " 1/1",
        ] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError), "{text:?}");
        }
    }

    #[test]
    fn distance_to_something_later_is_zero() {
        assert_eq!(Lsn::new(5).bytes_since(Lsn::new(3)), 2);
        assert_eq!(Lsn::new(3).bytes_since(Lsn::new(5)), 0);
    }

    proptest! {
        #[test]
        fn text_and_number_agree(value: u64) {
            prop_assert_eq!(Lsn::new(value).to_string().parse(), Ok(Lsn::new(value)));
        }
    }
}
