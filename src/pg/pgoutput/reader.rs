//! Reads big-endian fields from a borrowed body, and cannot read out of bounds. Each read names its
//! field, so that an error says what was missing. Knows nothing of messages.

use std::str;

use super::{DecodeError, PgTime};
use crate::lsn::Lsn;

/// What is left of a body. A failed read leaves it in an unspecified place: give up the body.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(super) fn take(
        &mut self,
        len: usize,
        field: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(DecodeError::Missing(field))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let [byte] = self.array(field)?;
        Ok(byte)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    /// A number of columns: an `Int16` that may not be negative.
    pub(super) fn count(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let count = self.array(field).map(i16::from_be_bytes)?;
        usize::try_from(count).map_err(|_| DecodeError::Negative(field))
    }

    /// A number of bytes or relations: an `Int32` that may not be negative. Nothing may be
    /// allocated by it before the bytes have been taken.
    pub(super) fn len(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        usize::try_from(self.i32(field)?).map_err(|_| DecodeError::Negative(field))
    }

    pub(super) fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.array(field).map(u64::from_be_bytes).map(Lsn::new)
    }

    pub(super) fn time(&mut self, field: &'static str) -> Result<PgTime, DecodeError> {
        self.array(field).map(i64::from_be_bytes).map(PgTime::new)
    }

    /// A `String` of the protocol: up to a NUL, which must be there. UTF-8, because the session
    /// asks for `client_encoding=UTF8`.
    pub(super) fn str(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let len = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(DecodeError::Missing(field))?;
        let text = self.take(len, field)?;
        self.u8(field)?;
        str::from_utf8(text).map_err(|_| DecodeError::NotUtf8(field))
    }

    /// The bytes that `read` consumes. What has been read once can be kept unparsed, and read
    /// again later without a failure.
    pub(super) fn span(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<(), DecodeError>,
    ) -> Result<&'a [u8], DecodeError> {
        let start = self.rest;
        read(self)?;
        let len = start.len().saturating_sub(self.rest.len());
        Ok(start.get(..len).unwrap_or(start))
    }

    /// Bytes left over mean that we read something else than was written: never pass over them.
    pub(super) fn end(&self, message: &'static str) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { message, bytes }),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Missing(field))?;
        self.rest = rest;
        Ok(*taken)
    }
}
