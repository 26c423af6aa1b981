//! A source file as the rules see it: lines, names, imports. Reads Rust as rustfmt writes it.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file, with its unit tests told apart.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
    /// All of it is for tests: its parent declares it so.
    pub(super) is_test: bool,
}

impl Source {
    /// What is shipped: all up to the unit tests, which stand last.
    pub(super) fn shipped(&self) -> &str {
        if self.is_test {
            return "";
        }
        let begins = ["mod tests {", "pub(crate) mod tests {"];
        let begins = begins.map(|begin| format!("\n#[cfg(test)]\n{begin}"));
        let tests = begins.iter().find_map(|begin| self.text.find(begin));
        &self.text[..tests.unwrap_or(self.text.len())]
    }

    /// The modules below this one that are declared for tests alone.
    fn test_modules(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut for_tests = false;
        for line in self.text.lines() {
            if let Some(name) = declared(line, "mod").filter(|_| line.ends_with(';') && for_tests) {
                found.push(format!("{}::{name}", self.module()));
            }
            let begins = ["#[cfg(test)]", "#[cfg(any(test"];
            let begins = begins.iter().any(|begin| line.starts_with(begin));
            for_tests = begins || (for_tests && line.starts_with("#["));
        }
        found
    }

    /// Shipped lines without comments and strings, numbered from 1.
    pub(super) fn code(&self) -> Vec<(usize, String)> {
        let lines = self.shipped().lines().enumerate();
        lines
            .map(|(index, line)| (index + 1, without_words(line)))
            .collect()
    }

    /// `pg::pgoutput` for `src/pg/pgoutput.rs` and all that is below it.
    pub(super) fn module(&self) -> String {
        let path = self.name.strip_prefix("src/").unwrap_or(&self.name);
        let path = path.strip_suffix(".rs").unwrap_or(path);
        path.strip_suffix("/mod").unwrap_or(path).replace('/', "::")
    }

    pub(super) fn complaint(&self, line: usize, words: impl std::fmt::Display) -> String {
        format!("{}:{line}: {words}", self.name)
    }
}

/// Whether a path is this module or inside it.
pub(super) fn within(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Every path that shipped code takes from the crate, with its line; `super` is resolved.
pub(super) fn imports(file: &Source) -> Vec<(usize, String)> {
    let module = file.module();
    let code = file.code();
    let mut found = Vec::new();
    for (index, (number, line)) in code.iter().enumerate() {
        for start in ["crate::", "super::"] {
            for (at, _) in line.match_indices(start) {
                let before = line[..at].chars().next_back();
                if before.is_some_and(|letter| letter.is_alphanumeric() || "_:$".contains(letter)) {
                    continue;
                }
                let rest: Vec<&str> = code[index + 1..]
                    .iter()
                    .map(|(_, line)| line.as_str())
                    .collect();
                let path = format!("{}{}", &line[at..], rest.join(" "));
                let paths = expanded(&path).into_iter();
                found.extend(paths.map(|path| (*number, resolved(&path, &module))));
            }
        }
    }
    found
}

/// The paths of one import: `crate::{a, b::c}` is `crate::a` and `crate::b`. What is deeper in
/// nested braces does not matter to any border.
fn expanded(text: &str) -> Vec<String> {
    let is_path = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    let end = text.find(|letter| !is_path(letter)).unwrap_or(text.len());
    let (path, rest) = text.split_at(end);
    if !path.ends_with("::") || !rest.starts_with('{') {
        return vec![path.trim_end_matches(':').to_owned()];
    }
    let mut depth = 0;
    let mut names = vec![String::new()];
    for letter in rest.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.push(String::new()),
            letter if depth == 1 && is_path(letter) => names.last_mut().expect("one").push(letter),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
        .iter()
        .map(|name| format!("{path}{}", name.trim_end_matches(':')))
        .collect()
}

fn resolved(path: &str, module: &str) -> String {
    let mut path = path;
    if let Some(path) = path.strip_prefix("crate::") {
        return path.to_owned();
    }
    let mut home: Vec<&str> = module.split("::").collect();
    while let Some(rest) = path.strip_prefix("super::") {
        home.pop();
        path = rest;
    }
    home.push(path);
    home.join("::")
}

/// The name that a line declares with this keyword.
pub(super) fn declared<'a>(line: &'a str, keyword: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace();
    let prefixes = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "async",
        "unsafe",
        "const",
        "extern",
    ];
    let mut word = words.next()?;
    while word != keyword && prefixes.contains(&word) {
        word = words.next()?;
    }
    let name = (word == keyword).then(|| words.find(|word| *word != "mut"))??;
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    Some(&name[..name.find(|letter| !is_name(letter)).unwrap_or(name.len())])
}

/// How many arguments the function takes whose declaration begins this text, itself included.
pub(super) fn arguments(declaration: &str) -> usize {
    let declaration = declaration.replace("->", "  ").replace("=>", "  ");
    let (mut depth, mut generics, mut count, mut is_empty) = (0, 0, 0, true);
    for letter in declaration.chars() {
        match letter {
            '<' => generics += 1,
            '>' => generics -= 1,
            '(' | '[' if generics == 0 || depth > 0 => depth += 1,
            ')' | ']' if depth == 1 => return count + usize::from(!is_empty),
            ')' | ']' if depth > 0 => depth -= 1,
            ',' if depth == 1 && generics == 0 => {
                count += 1;
                is_empty = true;
                continue;
            }
            '{' | ';' if depth == 0 => return 0,
            _ => {}
        }
        if depth > 0 && !letter.is_whitespace() && letter != '(' {
            is_empty = false;
        }
    }
    0
}

/// A line of code without its comment and without what stands in its strings.
fn without_words(line: &str) -> String {
    if line.trim_start().starts_with("//") {
        return String::new();
    }
    let mut code = String::new();
    let mut letters = line.chars().peekable();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if quoted => drop(letters.next()),
            '"' => {
                // `'"'` is a character, not the beginning of a string.
                let is_character = !quoted && code.ends_with('\'') && letters.peek() == Some(&'\'');
                quoted = quoted == is_character;
                code.push(letter);
            }
            '/' if !quoted && letters.peek() == Some(&'/') => break,
            _ if quoted => code.push('.'),
            letter => code.push(letter),
        }
    }
    code
}

/// The targets of a page's links into the repository.
pub(super) fn links(text: &str) -> Vec<String> {
    let starts = text.match_indices("](").map(|(at, _)| &text[at + 2..]);
    let targets = starts.filter_map(|rest| rest.split([')', ' ', '#']).next());
    let inner = targets.filter(|target| !target.is_empty() && !target.contains(':'));
    inner.map(str::to_owned).collect()
}

pub(super) fn pages() -> Vec<PathBuf> {
    let top = fs::read_dir(root()).expect("list the repository").flatten();
    let mut pages: Vec<PathBuf> = top.map(|entry| entry.path()).collect();
    for directory in ["docs", "deploy", "examples", "tests"] {
        pages.extend(files_below(&root().join(directory)));
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages
}

pub(super) fn sources(directory: &str) -> Vec<Source> {
    let mut paths = files_below(&root().join(directory));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    paths.sort();
    let named = |path: &PathBuf| {
        path.strip_prefix(root())
            .expect("ours")
            .display()
            .to_string()
    };
    let read = |path: PathBuf| Source {
        name: named(&path),
        text: fs::read_to_string(&path).expect("a source is text"),
        is_test: false,
    };
    let mut sources: Vec<Source> = paths.into_iter().map(read).collect();
    let for_tests: Vec<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let module = source.module();
        source.is_test = for_tests.iter().any(|test| within(&module, test));
    }
    sources
}

/// Every file in a directory and below; none if it does not exist.
pub(super) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type().expect("a file's type").is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
