//! A block of headers, read where it lies. Pure.

/// `NATS/1.0[ status[ description]]`, lines of `Name: value`, and an empty line; or nothing at all.
/// Lines that are none are passed over: a stream may hold messages of anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a>(&'a [u8]);

impl<'a> Headers<'a> {
    /// Reads nothing yet.
    pub fn new(block: &'a [u8]) -> Self {
        Self(block)
    }

    /// The block as it came.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// What the server says instead of a message: 503 where nobody listens.
    pub fn status(self) -> Option<u16> {
        let digits = self.first()?.first_chunk::<3>()?;
        let status = super::number(digits)?;
        u16::try_from(status).ok()
    }

    /// Its words about the status.
    pub fn description(self) -> Option<&'a [u8]> {
        let words = self.first()?.get(3..)?.trim_ascii();
        (!words.is_empty()).then_some(words)
    }

    /// The first value of a header. Names are compared as the server does, to the letter.
    pub fn value(self, name: &str) -> Option<&'a [u8]> {
        let mut lines = self.lines();
        let found = lines.find(|(found, _)| *found == name.as_bytes());
        found.map(|(_, value)| value)
    }

    /// Every header with its value.
    pub fn lines(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let lines = self.0.split(|byte| *byte == b'\n').skip(1);
        lines.filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at(colon);
            Some((name, value[1..].trim_ascii()))
        })
    }

    /// What follows the version.
    fn first(self) -> Option<&'a [u8]> {
        let line = self.0.split(|byte| *byte == b'\n').next()?;
        Some(line.strip_prefix(b"NATS/1.0")?.trim_ascii())
    }
}
