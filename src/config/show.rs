//! The configuration in effect, as YAML: each value with where it came from, secrets redacted.

use std::fmt::Write;

use super::raw::Node;
use super::{Config, Origin};

impl Config {
    /// YAML that says the same as all sources together, secrets apart.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut open: Vec<String> = Vec::new();
        self.raw.each("", &mut |path, value| {
            let mut sections: Vec<&str> = path.split('.').collect();
            let key = sections.pop().unwrap_or_default();
            let kept = open
                .iter()
                .zip(&sections)
                .take_while(|(a, b)| a == *b)
                .count();
            for (depth, section) in sections.iter().enumerate().skip(kept) {
                text.push_str(&format!("{}{section}:\n", "  ".repeat(depth)));
            }
            open = sections
                .iter()
                .map(|section| (*section).to_owned())
                .collect();
            let (value, origin) = match value {
                Some((value, origin)) => (format!(" {value}"), self.comment(origin)),
                None => (String::new(), "not set".to_owned()),
            };
            let line = format!("{}{key}:{value}", "  ".repeat(sections.len()));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line:<48} # {origin}");
        });
        text
    }

    fn comment(&self, origin: &Origin) -> String {
        match origin {
            Origin::Default => "default".to_owned(),
            Origin::File(location) => match &self.file {
                Some(file) => format!("{}:{}", file.display(), location.line()),
                None => "file".to_owned(),
            },
            Origin::Conventional(name) | Origin::Variable(name) => name.clone(),
            Origin::Flag(flag) => flag.clone(),
        }
    }
}
