//! What is played on the real server and on the model: short scripts, one for each rule.

mod catalog;
mod ends;
mod slots;
mod streams;

use super::conformance::Rule;

/// All of them.
pub(super) fn rules() -> Vec<Rule> {
    [streams::RULES, slots::RULES, ends::RULES, catalog::RULES].concat()
}
