//! Files that import each other in a circle can only be understood all at once.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, imports, within};

/// The circles, each as the names of its files. What a file takes from one that it is declared
/// below, or that is declared below it, does not count: those are one module, told apart by size.
pub(super) fn circles(files: &[Source]) -> Vec<String> {
    let names: BTreeMap<String, &str> = files
        .iter()
        .map(|file| (file.module(), file.name.as_str()))
        .collect();
    let taken: BTreeMap<&str, BTreeSet<&str>> = files
        .iter()
        .map(|file| (file.name.as_str(), taken_from(file, &names)))
        .collect();
    let mut found = BTreeSet::new();
    for file in taken.keys() {
        let circle = taken.keys().filter(|other| {
            *other != file && reaches(&taken, file, other) && reaches(&taken, other, file)
        });
        let circle: BTreeSet<&str> = circle.copied().chain([*file]).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    let told = |circle: BTreeSet<&str>| Vec::from_iter(circle).join(" ");
    found.into_iter().map(told).collect()
}

fn taken_from<'a>(file: &Source, names: &BTreeMap<String, &'a str>) -> BTreeSet<&'a str> {
    let home = file.module();
    let mut taken = BTreeSet::new();
    for (_, path) in imports(file) {
        let homes = names.iter().filter(|(module, _)| within(&path, module));
        let Some((module, name)) = homes.max_by_key(|(module, _)| module.len()) else {
            continue;
        };
        if !within(&home, module) && !within(module, &home) {
            taken.insert(*name);
        }
    }
    taken
}

fn reaches(taken: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut next = vec![from];
    while let Some(at) = next.pop() {
        for other in &taken[at] {
            if *other == to {
                return true;
            }
            if seen.insert(other) {
                next.push(other);
            }
        }
    }
    false
}
