//! Versions of models: dotted numbers that only go up.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A version of dotted numbers, `1.10.2`. Missing parts count as 0.
#[derive(Debug, Clone)]
pub struct ModelVersion {
    parts: Vec<u64>,
}

impl FromStr for ModelVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse().ok() } else { None }
        };
        let parts: Option<Vec<u64>> = text.split('.').map(number).collect();
        match parts {
            Some(parts) => Ok(Self { parts }),
            None => Err(format!("`{text}` is no version of dotted numbers such as 1.10.2")),
        }
    }
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.parts.iter().map(u64::to_string).collect();
        out.write_str(&parts.join("."))
    }
}

impl Ord for ModelVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        let length = self.parts.len().max(other.parts.len());
        let part = |version: &Self, at: usize| version.parts.get(at).copied().unwrap_or(0);
        (0..length)
            .map(|at| part(self, at).cmp(&part(other, at)))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }
}

impl PartialOrd for ModelVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ModelVersion {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ModelVersion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number() {
        let v = |text: &str| text.parse::<ModelVersion>().unwrap();
        assert!(v("1.10.0") > v("1.9.9"));
        assert!(v("2") > v("1.99"));
        assert_eq!(v("1"), v("1.0.0"));
        assert!(v("1.0.1") > v("1"));
        assert_eq!(v("1.02").to_string(), "1.2");
        for bad in ["", "1.", "1.x", "-1", "1.0-rc1", "99999999999999999999999"] {
            assert!(bad.parse::<ModelVersion>().is_err(), "{bad}");
        }
    }
}
