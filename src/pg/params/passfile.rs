//! Finds a password in a `.pgpass` file (libpq's `passwordFromFile`, fe-connect.c): lines
//! `host:port:database:user:password`, `*` matches anything, backslash escapes `:` and `\`.
//! Read only when a server asks for a password, so a bad file does no harm where none is needed.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Secret;

/// A password file is a list kept by hand; libpq's has no limit, ours only stops a wrong path.
const BYTES_MAX: u64 = 1 << 20;

/// What one connection is looked up as.
#[derive(Clone, Copy, Debug)]
pub(in crate::pg) struct Login<'a> {
    pub(in crate::pg) host: &'a str,
    pub(in crate::pg) port: u16,
    pub(in crate::pg) dbname: &'a str,
    pub(in crate::pg) user: &'a str,
}

/// The password file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassfileError {
    /// libpq ignores such a file as well.
    #[error("{} is accessible to group or others", .0.display())]
    Permissions(PathBuf),
    /// Not a regular file.
    #[error("{} is not a plain file", .0.display())]
    NotAFile(PathBuf),
    /// It exists and cannot be read.
    #[error("read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
}

/// `None` if the file does not exist or has no line for this login.
pub(in crate::pg) fn look_up(
    path: &Path,
    login: Login<'_>,
) -> Result<Option<Secret>, PassfileError> {
    let failed = |error| PassfileError::Read(path.to_owned(), error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(PassfileError::NotAFile(path.to_owned()));
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
        return Err(PassfileError::Permissions(path.to_owned()));
    }
    let mut text = String::new();
    file.take(BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(find(&text, login))
}

fn find(text: &str, login: Login<'_>) -> Option<Secret> {
    let port = login.port.to_string();
    let wanted = [login.host, &port, login.dbname, login.user];
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let mut rest = line;
            for value in wanted {
                rest = matching_field(rest, value)?;
            }
            Some(unescape(rest)).filter(|password| !password.is_empty())
        })
        .map(Secret::new)
}

/// What follows the first field of `line`, if that field is `*` or, unescaped, `value`.
fn matching_field<'a>(line: &'a str, value: &str) -> Option<&'a str> {
    let mut escaped = false;
    let end = line.find(|c| match c {
        ':' if !escaped => true,
        c => {
            escaped = c == '\\' && !escaped;
            false
        }
    })?;
    let field = &line[..end];
    (field == "*" || unescape(field) == value).then(|| &line[end + 1..])
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LOGIN: Login<'_> = Login {
        host: "db",
        port: 5432,
        dbname: "app",
        user: "outjet",
    };

    fn found(text: &str) -> Option<String> {
        find(text, LOGIN).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn first_matching_line_wins() {
        let text =
            "# db:5432:app:outjet:comment\nother:5432:app:outjet:a\ndb:*:*:outjet:b\n*:*:*:*:c\n";
        assert_eq!(found(text).as_deref(), Some("b"));
        assert_eq!(found("db:5433:app:outjet:x\n"), None);
        assert_eq!(found("db:5432:app:outjet\n"), None);
        assert_eq!(found(""), None);
    }

    #[test]
    fn colons_and_backslashes_are_escaped() {
        let login = Login {
            host: "::1",
            user: r"do\main",
            ..LOGIN
        };
        let secret = find(r"\:\:1:5432:app:do\\main:p\:a\\s:s", login);
        assert_eq!(
            secret.map(|s| s.expose().to_owned()).as_deref(),
            Some(r"p:a\s:s")
        );
    }

    #[test]
    fn file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"*:*:*:*:secret\n").unwrap();
        let mode = |mode| std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode));
        mode(0o600).unwrap();
        assert!(look_up(file.path(), LOGIN).unwrap().is_some());
        mode(0o640).unwrap();
        let refused = look_up(file.path(), LOGIN).unwrap_err();
        assert!(matches!(refused, PassfileError::Permissions(_)));
        assert!(
            look_up(Path::new("/nonexistent/pgpass"), LOGIN)
                .unwrap()
                .is_none()
        );
    }
}
