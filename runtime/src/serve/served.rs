//! The model that scans are predicted with, and how it is replaced while the daemon runs.
//!
//! A scan keeps the model it began with to its end, so that its files are of one model; the next
//! slide gets the newest one. Each is complete and has passed its self-test before anybody sees it.

use std::fmt;

use diffbulk_link::heapless;
use diffbulk_link::limits::GENES;
use diffbulk_link::message::{Hello, Model as LinkModel, Objective, Refocus, Rescan, Role, Stop};
use diffbulk_link::units::{Fraction, Um, UmPerPx};

use super::planning;
use super::scan::{ObjectiveSettings, ScanSettings};
use crate::engine::Engine;
use crate::model::Model;
use crate::trust::selftest::{self, Expectation};
use crate::{Error, Result};

/// Step between two focus positions that are tried.
const REFOCUS_STEP_UM: f64 = 1.0;

/// A model and the engine that has it loaded.
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Has it loaded.
    pub engine: Box<dyn Engine>,
    /// What it has to predict on the self-test tile, where its signature says so.
    pub expectation: Option<Expectation>,
}

/// Where models come from. Given the model in use, [`load`](Models::load) returns another one, or
/// nothing if there is none; given nothing, the first one.
pub trait Models: Sync {
    /// Opens, verifies and loads.
    ///
    /// # Errors
    /// When the model there must not or cannot be used.
    fn load(&self, in_use: Option<&Model>) -> Result<Option<Loaded>>;
}

/// A model in use, with everything that follows from it and the daemon's settings.
pub(super) struct Served {
    /// 1 for the first one, then counting up.
    pub(super) generation: u64,
    pub(super) model: Model,
    pub(super) engine: Box<dyn Engine>,
    /// Columns of the model's panel that are written.
    pub(super) columns: Vec<usize>,
    /// Columns of a row that the board gets.
    pub(super) board_columns: Vec<usize>,
    pub(super) objective: Objective,
    /// How this host introduces itself.
    pub(super) hello: Hello,
}

impl fmt::Debug for Served {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Served({} {})", self.generation, self.name())
    }
}

impl Served {
    /// Puts a model into use, once it has predicted the self-test tile as expected.
    ///
    /// # Errors
    /// When it fails that, or the settings do not fit its panel.
    pub(super) fn new(generation: u64, loaded: Loaded, settings: &ScanSettings) -> Result<Self> {
        let Loaded { model, engine, expectation } = loaded;
        let values = selftest::predict(&*engine, &model)?;
        let met = match &expectation {
            Some(expectation) => expectation.is_met_by(&values),
            None => values.iter().all(|value| value.is_finite()),
        };
        if !met {
            return Err(Error::model(
                model.path(),
                format!(
                    "on engine `{}` the self-test tile gives other values than when the model was \
                     signed",
                    engine.name()
                ),
            ));
        }
        let metadata = model.metadata();
        let columns = match &settings.genes {
            Some(wanted) => crate::predict::genes::columns(&metadata.panel, wanted)?,
            None => (0..metadata.panel.len()).collect(),
        };
        let written: Vec<String> =
            columns.iter().map(|&column| metadata.panel[column].clone()).collect();
        let named = settings.board_genes.as_deref();
        let board_columns = planning::panel(named, &written, &metadata.gene_pearson)?;
        let board_genes: Vec<&str> = board_columns.iter().map(|&c| written[c].as_str()).collect();
        let objective = objective(&settings.objective, &board_genes)?;
        let hello = hello(&model, &board_genes);
        Ok(Self { generation, model, engine, columns, board_columns, objective, hello })
    }

    /// Name and version of the model.
    pub(super) fn name(&self) -> String {
        let metadata = self.model.metadata();
        format!("{} {}", metadata.name, metadata.version)
    }

    pub(super) fn engine_name(&self) -> &'static str {
        self.engine.name()
    }
}

/// What boards and cameras are told about this host.
fn hello(model: &Model, genes: &[&str]) -> Hello {
    // Longer names are cut: they are for people.
    fn text<const N: usize>(text: &str) -> heapless::String<N> {
        let mut short = heapless::String::new();
        for c in text.chars() {
            if short.push(c).is_err() {
                break;
            }
        }
        short
    }
    let mut sha256 = [0; 32];
    for (byte, pair) in sha256.iter_mut().zip(model.sha256().as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    Hello {
        role: Role::Host,
        version: text(crate::VERSION),
        model: Some(LinkModel { name: text(&model.metadata().name), sha256 }),
        panel: genes.iter().map(|gene| text(gene)).collect(),
        resume: None,
    }
}

/// What the board looks for, in the order of its genes.
fn objective(settings: &ObjectiveSettings, genes: &[&str]) -> Result<Objective> {
    let mut weights = heapless::Vec::<f32, GENES>::new();
    for gene in genes {
        let weight = settings.score.iter().find(|(name, _)| name.eq_ignore_ascii_case(gene));
        // As many as genes, which fit.
        let _ = weights.push(weight.map_or(0.0, |(_, weight)| *weight));
    }
    for (name, weight) in &settings.score {
        if !genes.iter().any(|gene| gene.eq_ignore_ascii_case(name)) {
            return Err(Error::Request(format!(
                "the score names {name}, which the board does not get; it gets {} (choose with \
                 --board-genes)",
                genes.join(", ")
            )));
        }
        if !weight.is_finite() {
            return Err(Error::Request(format!("{weight} is no weight for {name}")));
        }
    }
    if !(settings.enter.is_finite() && settings.leave <= settings.enter) {
        return Err(Error::Request(format!(
            "a hot spot cannot begin at {} and end below {}",
            settings.enter, settings.leave
        )));
    }
    let refocus = match settings.refocus {
        Some((below, most)) => Some(Refocus {
            below: Fraction::new(below).ok_or_else(|| {
                Error::Request(format!("a confidence of {below} is not between 0 and 1"))
            })?,
            step: Um::new(REFOCUS_STEP_UM).unwrap_or_default(),
            most,
        }),
        None => None,
    };
    Ok(Objective {
        weights,
        enter: settings.enter,
        leave: settings.leave,
        best: diffbulk_link::limits::BEST as u8,
        tissue: Fraction::ZERO,
        // The slide's finest scale is filled in when it is known.
        rescan: (settings.rescans > 0)
            .then_some(Rescan { scale: UmPerPx(1), most: settings.rescans }),
        refocus,
        stop: settings.stop_after.map(|hot| Stop { hot }),
    })
}
