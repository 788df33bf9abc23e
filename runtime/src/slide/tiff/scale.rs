//! Physical scale and origin of a TIFF slide, from the places where scanners write them.

use super::directory::{Directory, TiffFile, tag};

/// Scales outside this range (um/px) are print resolutions (72 dpi is 353 um/px) or nonsense.
const PLAUSIBLE_UM_PER_PX: std::ops::RangeInclusive<f64> = 0.05..=20.0;

/// What the description tags tell.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) um_per_px: Option<f64>,
    pub(super) objective: Option<f64>,
    pub(super) vendor: Option<String>,
    pub(super) properties: Vec<(String, String)>,
}

/// Whether an image description is Aperio's.
pub(super) fn is_aperio(description: &str) -> bool {
    description.starts_with("Aperio")
}

fn plausible(um_per_px: f64) -> Option<f64> {
    PLAUSIBLE_UM_PER_PX.contains(&um_per_px).then_some(um_per_px)
}

/// Reads the facts of the finest image's `directory`.
pub(super) fn facts(file: &TiffFile, directory: &Directory) -> Result<Facts, String> {
    let description = file.text(directory, tag::IMAGE_DESCRIPTION)?.unwrap_or_default();
    let mut facts = Facts::default();
    if is_aperio(&description) {
        facts = aperio(&description);
    } else if !description.is_empty() {
        facts.um_per_px = ome(&description);
        if facts.um_per_px.is_some() || description.contains("<OME") {
            facts.properties.push(("description".into(), "OME-XML".into()));
        } else {
            let short: String = description.chars().take(400).collect();
            facts.properties.push(("description".into(), short));
        }
    }
    for (tag, name) in [(tag::MAKE, "make"), (tag::MODEL, "model"), (tag::SOFTWARE, "software")] {
        if let Some(value) = file.text(directory, tag)?.filter(|value| !value.is_empty()) {
            if tag == tag::MAKE && facts.vendor.is_none() {
                facts.vendor = Some(value.clone());
            }
            facts.properties.push((name.into(), value));
        }
    }
    if facts.um_per_px.is_none() {
        facts.um_per_px = resolution(file, directory)?;
    }
    Ok(facts)
}

/// Aperio's description: lines of text, then `key = value` fields divided by bars.
fn aperio(description: &str) -> Facts {
    let mut facts = Facts { vendor: Some("Aperio".into()), ..Facts::default() };
    let mut fields = description.split('|');
    if let Some(header) = fields.next() {
        let header = header.split_whitespace().collect::<Vec<_>>().join(" ");
        facts.properties.push(("description".into(), header));
    }
    for field in fields {
        let Some((key, value)) = field.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim());
        match key {
            "MPP" => facts.um_per_px = value.parse().ok().and_then(plausible),
            "AppMag" => {
                facts.objective = value.parse().ok().filter(|&x: &f64| x.is_finite() && x > 0.0);
            }
            _ => {}
        }
        facts.properties.push((format!("aperio.{key}"), value.into()));
    }
    facts
}

/// `PhysicalSizeX` (and its unit, micrometres where none is given) of the first image in OME-XML.
fn ome(description: &str) -> Option<f64> {
    let pixels = &description[description.find("<Pixels")?..];
    let pixels = &pixels[..pixels.find('>')?];
    let attribute = |name: &str| -> Option<&str> {
        let start = pixels.find(&format!(" {name}=\""))? + name.len() + 3;
        let rest = &pixels[start..];
        Some(&rest[..rest.find('"')?])
    };
    let size: f64 = attribute("PhysicalSizeX")?.trim().parse().ok()?;
    let factor = match attribute("PhysicalSizeXUnit").unwrap_or("µm") {
        "µm" | "μm" | "um" | "&#181;m" | "&#xB5;m" => 1.0,
        "nm" => 1e-3,
        "mm" => 1e3,
        "cm" => 1e4,
        _ => return None,
    };
    plausible(size * factor)
}

/// The resolution tags: pixels per centimetre or inch.
fn resolution(file: &TiffFile, directory: &Directory) -> Result<Option<f64>, String> {
    let um_per_unit = match file.integer(directory, tag::RESOLUTION_UNIT)?.unwrap_or(2) {
        2 => 25_400.0,
        3 => 10_000.0,
        _ => return Ok(None),
    };
    let x = file.real(directory, tag::X_RESOLUTION)?;
    let y = file.real(directory, tag::Y_RESOLUTION)?;
    // Pixels that are not square cannot be tiled in physical units by one number.
    Ok(match (x, y) {
        (Some(x), y) if y.is_none_or(|y| (x / y - 1.0).abs() < 0.01) => plausible(um_per_unit / x),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aperio_fields_are_read() {
        let facts = aperio("Aperio Image Library\r\n10x10|AppMag = 20|MPP = 0.4990|User = a=b");
        assert_eq!(facts.um_per_px, Some(0.499));
        assert_eq!(facts.objective, Some(20.0));
        assert_eq!(facts.properties[3], ("aperio.User".into(), "a=b".into()));
        assert_eq!(aperio("Aperio|MPP = nonsense").um_per_px, None);
        assert_eq!(aperio("Aperio|MPP = 0").um_per_px, None);
    }

    #[test]
    fn ome_sizes_are_read_with_their_unit() {
        let xml = |attributes: &str| format!("<OME><Image><Pixels {attributes}/></Image></OME>");
        assert_eq!(ome(&xml("ID=\"P\" PhysicalSizeX=\"0.25\" SizeX=\"9\"")), Some(0.25));
        let nanometres = xml("ID=\"P\" PhysicalSizeX=\"250\" PhysicalSizeXUnit=\"nm\"");
        assert_eq!(ome(&nanometres), Some(0.25));
        assert_eq!(ome(&xml("ID=\"P\" PhysicalSizeX=\"250\" PhysicalSizeXUnit=\"pixel\"")), None);
        assert_eq!(ome("<Pixels PhysicalSizeX=\"0.2"), None);
    }
}
