//! An event as it leaves: a subject, headers, a body, and its place in the commit order. Knows
//! neither SQL nor NATS.

use std::fmt;
use std::str::FromStr;

/// An event's place in the commit order of its source: the LSN of its commit record and its index
/// among the rows and messages of that transaction. The text form
/// (`<commit_lsn, 16 hex>-<index, 8 hex>`) sorts the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Names the transaction; opaque here.
    pub commit: u64,
    /// From 0, counting what the slot sends in the transaction, published or not.
    pub index: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}-{:08X}", self.commit, self.index)
    }
}

/// The text is not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position (expected 16 and 8 hexadecimal digits, as in 00000000017B8480-00000001)")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, ParsePositionError> {
        let hex = |digits: &str, len| {
            let plain = digits.len() == len && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
                .ok_or(ParsePositionError)
        };
        let (commit, index) = text.split_once('-').ok_or(ParsePositionError)?;
        let index = u32::try_from(hex(index, 8)?).map_err(|_| ParsePositionError)?;
        Ok(Self {
            commit: hex(commit, 16)?,
            index,
        })
    }
}
