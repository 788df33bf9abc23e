//! [`Metadata`] to and from an ONNX file's `metadata_props`.

use std::collections::{BTreeMap, HashSet};

use serde::de::DeserializeOwned;

use super::metadata::{KEY_PREFIX, Metadata, SCHEMA_VERSION};

/// Largest tile side a model may ask for, in pixels.
const MAX_TILE_PX: u32 = 8192;

/// Why `metadata_props` do not make a [`Metadata`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PropsError {
    /// There is not one key of ours.
    #[error(
        "it carries no DiffBulk metadata (no `diffbulk.*` keys such as `diffbulk.panel` and \
         `diffbulk.um_per_px` in its metadata_props); models written by `diffbulk-train export` do"
    )]
    Absent,
    /// Some of the keys are there, these are not.
    #[error(
        "its metadata lacks {}; export it again with `diffbulk-train export`",
        .0.iter().map(|key| format!("`{KEY_PREFIX}{key}`")).collect::<Vec<_>>().join(", ")
    )]
    Missing(Vec<String>),
    /// The file is from the future.
    #[error(
        "its metadata has schema version {found}, this program knows up to {SCHEMA_VERSION}; \
         update diffbulk"
    )]
    NewerSchema {
        /// Version in the file.
        found: u64,
    },
    /// A value cannot be read or makes no sense.
    #[error("its metadata `{KEY_PREFIX}{key}` is wrong: {problem}; export it again")]
    Invalid {
        /// Key without the prefix.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

impl Metadata {
    /// The `metadata_props` entries that carry this metadata: key and JSON value, sorted by key.
    /// Fields that are absent (`None`) are left out.
    pub fn to_props(&self) -> Vec<(String, String)> {
        // A struct of plain values always serialises to a JSON object.
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self) else {
            return Vec::new();
        };
        let mut props: Vec<_> = fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (format!("{KEY_PREFIX}{key}"), value.to_string()))
            .collect();
        props.sort();
        props
    }

    /// Reads the metadata out of `metadata_props` entries. Keys that are not ours are ignored.
    ///
    /// # Errors
    /// See [`PropsError`].
    pub fn from_props<'a>(
        props: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, PropsError> {
        let mut fields = Fields { values: BTreeMap::new(), missing: Vec::new() };
        for (key, value) in props {
            if let Some(key) = key.strip_prefix(KEY_PREFIX)
                && fields.values.insert(key, value).is_some()
            {
                return Err(invalid(key, "it is there twice"));
            }
        }
        if !fields.values.contains_key("schema_version") && !fields.values.contains_key("panel") {
            return Err(PropsError::Absent);
        }
        // The version first: a newer schema may have changed every other field.
        match fields.optional::<u64>("schema_version")? {
            Some(found) if found > u64::from(SCHEMA_VERSION) => {
                return Err(PropsError::NewerSchema { found });
            }
            _ => {}
        }
        let metadata = (
            fields.required("schema_version")?,
            fields.required("name")?,
            fields.required("version")?,
            fields.required("panel")?,
            fields.required("tile_px")?,
            fields.required("um_per_px")?,
            fields.required("unit")?,
            fields.required("precision")?,
            fields.required("macs_per_tile")?,
            fields.required("license")?,
            fields.required("training_data")?,
            fields.required("provenance")?,
        );
        let (
            Some(schema_version),
            Some(name),
            Some(version),
            Some(panel),
            Some(tile_px),
            Some(um_per_px),
            Some(unit),
            Some(precision),
            Some(macs_per_tile),
            Some(license),
            Some(training_data),
            Some(provenance),
        ) = metadata
        else {
            return Err(PropsError::Missing(fields.missing));
        };
        let metadata = Self {
            schema_version,
            name,
            version,
            panel,
            tile_px,
            um_per_px,
            unit,
            precision,
            quantization: fields.optional("quantization")?,
            macs_per_tile,
            license,
            training_data,
            metrics: fields.optional("metrics")?.unwrap_or_default(),
            gene_pearson: fields.optional("gene_pearson")?.unwrap_or_default(),
            confidence: fields.optional("confidence")?,
            provenance,
        };
        metadata.check()?;
        Ok(metadata)
    }

    /// Checks that the values make sense together; the trainer calls it before writing.
    ///
    /// # Errors
    /// [`PropsError::Invalid`] naming the first field that does not.
    pub fn check(&self) -> Result<(), PropsError> {
        if self.schema_version == 0 {
            return Err(invalid("schema_version", "versions start at 1"));
        }
        if self.panel.is_empty() {
            return Err(invalid("panel", "it has no genes"));
        }
        let mut seen = HashSet::new();
        for gene in &self.panel {
            if gene.trim().is_empty() {
                return Err(invalid("panel", "a gene symbol is empty"));
            }
            if !seen.insert(gene) {
                return Err(invalid("panel", format!("gene {gene} is there twice")));
            }
        }
        if self.tile_px == 0 || self.tile_px > MAX_TILE_PX {
            let problem = format!("{} px is not between 1 and {MAX_TILE_PX}", self.tile_px);
            return Err(invalid("tile_px", problem));
        }
        if !(self.um_per_px.is_finite() && self.um_per_px > 0.0) {
            return Err(invalid("um_per_px", format!("{} is not a scale", self.um_per_px)));
        }
        if let Some(confidence) = &self.confidence {
            confidence.check().map_err(|problem| invalid("confidence", problem))?;
        }
        Ok(())
    }
}

struct Fields<'a> {
    values: BTreeMap<&'a str, &'a str>,
    missing: Vec<String>,
}

impl Fields<'_> {
    /// The field's value; absent ones are noted in `missing`.
    fn required<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, PropsError> {
        let value = self.optional(key)?;
        if value.is_none() {
            self.missing.push(key.to_owned());
        }
        Ok(value)
    }

    fn optional<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, PropsError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(json) => {
                serde_json::from_str(json).map_err(|error| invalid(key, error.to_string()))
            }
        }
    }
}

fn invalid(key: &str, problem: impl Into<String>) -> PropsError {
    PropsError::Invalid { key: key.to_owned(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;

    fn read(props: &[(String, String)]) -> Result<Metadata, PropsError> {
        Metadata::from_props(props.iter().map(|(k, v)| (k.as_str(), v.as_str())))
    }

    #[test]
    fn props_round_trip() {
        let mut metadata = testing::metadata(224, &["ERBB2", "EPCAM"]);
        metadata.quantization = Some(serde_json::json!({"scheme": "minmax"}));
        metadata.gene_pearson.insert("ERBB2".into(), 0.5);
        let props = metadata.to_props();
        assert!(props.iter().all(|(key, _)| key.starts_with(KEY_PREFIX)));
        assert_eq!(read(&props).unwrap(), metadata);
    }

    #[test]
    fn foreign_files_are_told_apart_from_incomplete_ones() {
        let foreign = [("author".to_owned(), "someone".to_owned())];
        assert_eq!(read(&foreign), Err(PropsError::Absent));
        let mut props = testing::metadata(8, &["A"]).to_props();
        props.retain(|(key, _)| key != "diffbulk.unit" && key != "diffbulk.um_per_px");
        let error = read(&props).unwrap_err();
        assert_eq!(error, PropsError::Missing(vec!["um_per_px".into(), "unit".into()]));
        assert!(error.to_string().contains("`diffbulk.um_per_px`, `diffbulk.unit`"));
    }

    #[test]
    fn a_newer_schema_is_refused_before_anything_else() {
        let props = [("diffbulk.schema_version".to_owned(), "99".to_owned())];
        assert_eq!(read(&props), Err(PropsError::NewerSchema { found: 99 }));
    }

    #[test]
    fn duplicate_genes_and_wrong_types_name_the_key() {
        let error = read(&testing::metadata(8, &["A", "A"]).to_props()).unwrap_err();
        assert!(error.to_string().contains("gene A is there twice"), "{error}");
        let mut props = testing::metadata(8, &["A"]).to_props();
        for (key, value) in &mut props {
            if key == "diffbulk.tile_px" {
                *value = "\"big\"".into();
            }
        }
        let error = read(&props).unwrap_err();
        assert!(error.to_string().contains("`diffbulk.tile_px`"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_without_panic(value in ".{0,40}", field in 0usize..16) {
            let mut props = testing::metadata(8, &["A"]).to_props();
            let field = field % props.len();
            props[field].1 = value;
            let _ = read(&props);
        }
    }
}
