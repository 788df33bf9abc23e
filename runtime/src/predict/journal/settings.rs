//! What two runs must have in common to share a journal.

use std::collections::BTreeMap;

/// Everything that decides the numbers in the rows, by name. Two runs may share a journal only
/// when all of it is equal.
pub type Settings = BTreeMap<String, String>;

/// Settings that differ, in words.
pub(crate) fn differences(found: &Settings, wanted: &Settings) -> Vec<String> {
    let mut keys: Vec<&String> = found.keys().chain(wanted.keys()).collect();
    keys.sort();
    keys.dedup();
    let shown = |value: Option<&String>| {
        let value = value.map_or("nothing", String::as_str);
        let mut short: String = value.chars().take(48).collect();
        if short.len() < value.len() {
            short.push_str("...");
        }
        short
    };
    keys.into_iter()
        .filter(|key| found.get(*key) != wanted.get(*key))
        .map(|key| {
            format!("{key} was {} and is now {}", shown(found.get(key)), shown(wanted.get(key)))
        })
        .collect()
}
