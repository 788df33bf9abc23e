//! The pipeline: tiles in, rows out in tile order, with every stage running at the same time.
//!
//! ```text
//! tiles --> [read and resample] x n --> [infer, confidence] x m --> rows in tile order
//! ```
//!
//! The stages are joined by bounded queues. On top of that a fixed number of tickets limits the
//! tiles between the first stage and the last, so that one slow tile cannot make the reordering
//! buffer grow: memory does not depend on the size of the slide.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::engine::{Engine, Session};
use crate::model::Confidence;
use crate::output::Row;
use crate::process::thread_cpu_ms;
use crate::slide::Slide;
use crate::tiling::{Tile, read_tile};
use crate::{Error, Result};

/// Tiles under way for every inference session: one being read, one waiting, one being inferred,
/// one waiting for an earlier tile.
const TICKETS_PER_THREAD: usize = 4;

/// A tile to be predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The tile.
    pub tile: Tile,
    /// Fraction of it that is tissue, 0 to 1.
    pub tissue: f32,
}

/// What became of a tile.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was predicted.
    Row(Row),
    /// Its pixels cannot be decoded.
    Damaged(DamagedTile),
}

/// Name of the engine that predicted a tile; none for one that was left out.
pub type RanOn = Option<&'static str>;

/// What the stages hand to the end.
type Done = Result<(Outcome, RanOn)>;

/// A tile that was left out because the slide is damaged there.
#[derive(Debug, Clone, PartialEq)]
pub struct DamagedTile {
    /// The tile.
    pub tile: Tile,
    /// Which part of the slide, and what is wrong with it.
    pub problem: String,
}

/// What the stages need.
pub struct Pipeline<'a> {
    /// Where the pixels come from.
    pub slide: &'a dyn Slide,
    /// What predicts.
    pub engine: &'a dyn Engine,
    /// Side of the model's tile in pixels.
    pub tile_px: u32,
    /// Columns of the model's output that are kept, in order.
    pub columns: &'a [usize],
    /// What the model was trained on.
    pub confidence: Option<&'a Confidence>,
    /// Threads that read; the engine says how many sessions keep it busy beside them.
    pub threads: usize,
    /// Set from outside to stop after the tiles that are under way.
    pub stop: &'a AtomicBool,
}

impl Pipeline<'_> {
    /// Runs `jobs` and calls `write` with what became of each and the engine that predicted it, in
    /// their order, on this thread.
    /// When [`Pipeline::stop`] is set no new tile is started and those under way are finished.
    /// Gives the mean processor time of an inference thread, where the system tells.
    ///
    /// # Errors
    /// The first error of any stage or of `write`, damage of single tiles apart; the rows before
    /// it have been written.
    pub fn run<J>(
        &self,
        jobs: J,
        mut write: impl FnMut(Outcome, RanOn) -> Result<()>,
    ) -> Result<Duration>
    where
        J: Iterator<Item = Job> + Send,
    {
        let threads = self.threads.max(1);
        // Sessions first: an engine that cannot start says so before any thread runs.
        let inferring = self.engine.sessions(threads).max(1);
        let sessions = (0..inferring).map(|_| self.engine.session()).collect::<Result<Vec<_>>>()?;
        let tickets = TICKETS_PER_THREAD * threads.max(inferring);
        let (ticket_back, ticket) = bounded::<()>(tickets);
        for _ in 0..tickets {
            // The queue has room for all of them.
            let _ = ticket_back.send(());
        }
        let (to_read, jobs_in) = bounded::<(u64, Job)>(threads);
        let (to_infer, read_in) = bounded::<(u64, Job, Vec<u8>)>(inferring);
        let (to_write, rows_in) = bounded::<(u64, Done)>(inferring);

        std::thread::scope(|scope| {
            let stop = self.stop;
            scope.spawn(move || produce(jobs, &ticket, &to_read, stop));
            for _ in 0..threads {
                let (jobs_in, to_infer, to_write) =
                    (jobs_in.clone(), to_infer.clone(), to_write.clone());
                scope.spawn(move || self.read(&jobs_in, &to_infer, &to_write));
            }
            let mut inference = vec![];
            for session in sessions {
                let (read_in, to_write) = (read_in.clone(), to_write.clone());
                inference.push(scope.spawn(move || {
                    self.infer(session, &read_in, &to_write);
                    thread_cpu_ms().unwrap_or(0.0)
                }));
            }
            // Only the threads hold the queues now: each stage ends when the one before it has.
            drop((jobs_in, to_infer, read_in, to_write));
            let result = in_order(rows_in, |outcome, ran_on| {
                write(outcome, ran_on)?;
                let _ = ticket_back.try_send(());
                Ok(())
            });
            // Both ends that this thread held are gone now, which ends every stage even when an
            // error left work in the queues.
            drop(ticket_back);
            let spent: f64 = inference.into_iter().filter_map(|thread| thread.join().ok()).sum();
            result.map(|()| Duration::from_secs_f64(spent / inferring as f64 / 1e3))
        })
    }

    fn read(
        &self,
        jobs: &Receiver<(u64, Job)>,
        done: &Sender<(u64, Job, Vec<u8>)>,
        left_out: &Sender<(u64, Done)>,
    ) {
        for (number, job) in jobs {
            let (x, y) = job.tile.centre();
            let sent = match caught("reading", &job, || {
                read_tile(self.slide, x, y, job.tile.side, self.tile_px)
            }) {
                Ok(image) => done.send((number, job, image)).is_ok(),
                Err(Error::Damaged { problem, .. }) => {
                    let damaged = DamagedTile { tile: job.tile, problem };
                    left_out.send((number, Ok((Outcome::Damaged(damaged), None)))).is_ok()
                }
                Err(error) => left_out.send((number, Err(error))).is_ok(),
            };
            if !sent {
                return;
            }
        }
    }

    fn infer(
        &self,
        mut session: Box<dyn Session>,
        tiles: &Receiver<(u64, Job, Vec<u8>)>,
        done: &Sender<(u64, Done)>,
    ) {
        for (number, job, image) in tiles {
            let values = caught("inference", &job, || session.predict(&image));
            let row = values.and_then(|values| self.row(job, &image, &values));
            let ran_on = session.ran_on().unwrap_or(self.engine.name());
            if done.send((number, row.map(|row| (Outcome::Row(row), Some(ran_on))))).is_err() {
                return;
            }
        }
    }

    fn row(&self, job: Job, image: &[u8], values: &[f32]) -> Result<Row> {
        row(self.engine.name(), self.columns, self.confidence, job, image, values)
    }
}

/// The row of a tile whose pixels at the model's scale are `image`, for which `engine` gave
/// `values`, one a gene of the model's panel, of which `columns` are kept.
///
/// # Errors
/// When there are too few values, or one is not a number.
pub(crate) fn row(
    engine: &'static str,
    columns: &[usize],
    confidence: Option<&Confidence>,
    job: Job,
    image: &[u8],
    values: &[f32],
) -> Result<Row> {
    let refuse = |problem: String| Error::Engine { engine, problem };
    let expression: Option<Vec<f32>> =
        columns.iter().map(|&column| values.get(column).copied()).collect();
    let Some(expression) = expression else {
        return Err(refuse(format!("only {} values came out for a tile", values.len())));
    };
    if expression.iter().any(|value| !value.is_finite()) {
        return Err(refuse(format!(
            "tile {} got a value that is not a number; the model's weights are damaged",
            job.tile.id
        )));
    }
    let confidence = confidence.map_or(1.0, |confidence| confidence.of(image));
    Ok(Row { tile: job.tile, tissue: job.tissue, confidence, expression })
}

/// Numbers the jobs and hands them out, one per ticket.
fn produce(
    jobs: impl Iterator<Item = Job>,
    ticket: &Receiver<()>,
    out: &Sender<(u64, Job)>,
    stop: &AtomicBool,
) {
    for (number, job) in (0..).zip(jobs) {
        if ticket.recv().is_err()
            || stop.load(Ordering::Relaxed)
            || out.send((number, job)).is_err()
        {
            return;
        }
    }
}

/// Hands rows on in the order of their numbers, which start at 0 without a gap. Takes the queue,
/// so that it closes when this returns.
fn in_order(
    rows: Receiver<(u64, Done)>,
    mut write: impl FnMut(Outcome, RanOn) -> Result<()>,
) -> Result<()> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for (number, row) in rows {
        waiting.insert(number, row);
        while let Some(outcome) = waiting.remove(&next) {
            let (outcome, ran_on) = outcome?;
            write(outcome, ran_on)?;
            next += 1;
        }
    }
    Ok(())
}

/// Runs one tile's work; a panic in a decoder or an engine fails that tile with an error that
/// names it instead of hanging the pipeline.
pub(crate) fn caught<T>(stage: &str, job: &Job, work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::Request(format!(
            "{stage} of tile {} at ({:.0}, {:.0}) failed inside; the slide or the model file is \
             probably damaged",
            job.tile.id, job.tile.x, job.tile.y
        )))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::predict::testing::{FlatSlide, flat_slide};

    /// An engine whose one output is the tile's first byte; waits longer on earlier tiles and can
    /// fail or panic on a value.
    #[derive(Default)]
    struct Odd {
        fail_at: Option<u8>,
        panic_at: Option<u8>,
        running: AtomicUsize,
        most: Mutex<usize>,
    }

    impl Engine for &'static Odd {
        fn name(&self) -> &'static str {
            "odd"
        }

        fn session(&self) -> Result<Box<dyn Session>> {
            Ok(Box::new(OddSession(self)))
        }
    }

    struct OddSession(&'static Odd);

    impl Session for OddSession {
        fn predict_into(&mut self, image: &[u8], values: &mut Vec<f32>) -> Result<()> {
            let running = self.0.running.fetch_add(1, Ordering::SeqCst) + 1;
            let mut most = self.0.most.lock().unwrap();
            *most = running.max(*most);
            drop(most);
            std::thread::sleep(Duration::from_millis(u64::from(7 - image[0] % 8)));
            self.0.running.fetch_sub(1, Ordering::SeqCst);
            if self.0.panic_at == Some(image[0]) {
                panic!("odd");
            }
            if self.0.fail_at == Some(image[0]) {
                return Err(Error::Request("odd tile".into()));
            }
            *values = vec![f32::from(image[0]), f32::NAN];
            Ok(())
        }
    }

    /// A slide whose pixel (x, y) has the value x / 8: tile k of 8 px has the value k.
    fn slide() -> FlatSlide {
        flat_slide(8 * 200, 8, |x, _| [(x / 8) as u8; 3])
    }

    fn jobs(count: u64) -> impl Iterator<Item = Job> + Send {
        (0..count).map(|index| Job {
            tile: Tile { index, id: format!("t{index}"), x: index as f64 * 8.0, y: 0.0, side: 8.0 },
            tissue: 1.0,
        })
    }

    fn run(
        engine: &'static Odd,
        threads: usize,
        stop_after: u64,
        columns: &[usize],
    ) -> (Vec<Row>, Result<()>) {
        let stop = AtomicBool::new(false);
        let slide = slide();
        let pipeline = Pipeline {
            slide: &slide,
            engine: &engine,
            tile_px: 8,
            columns,
            confidence: None,
            threads,
            stop: &stop,
        };
        let mut rows = vec![];
        let result = pipeline.run(jobs(100), |outcome, _| {
            let Outcome::Row(row) = outcome else { panic!("nothing is damaged") };
            rows.push(row);
            if rows.len() as u64 == stop_after {
                stop.store(true, Ordering::Relaxed);
            }
            Ok(())
        });
        (rows, result.map(|_| ()))
    }

    fn leak(odd: Odd) -> &'static Odd {
        Box::leak(Box::new(odd))
    }

    #[test]
    fn rows_come_in_order_from_many_threads() {
        let engine = leak(Odd::default());
        let (rows, result) = run(engine, 4, 0, &[0]);
        result.unwrap();
        let values: Vec<f32> = rows.iter().map(|row| row.expression[0]).collect();
        assert_eq!(values, (0..100).map(|k| k as f32).collect::<Vec<_>>());
        assert!(rows.iter().enumerate().all(|(k, row)| row.tile.index == k as u64));
        assert!(*engine.most.lock().unwrap() > 1, "nothing ran in parallel");
    }

    #[test]
    fn stopping_finishes_what_is_under_way() {
        let (rows, result) = run(leak(Odd::default()), 2, 10, &[0]);
        result.unwrap();
        assert!(rows.len() >= 10 && rows.len() <= 10 + 2 * TICKETS_PER_THREAD, "{}", rows.len());
        assert!(rows.iter().enumerate().all(|(k, row)| row.tile.index == k as u64));
    }

    #[test]
    fn an_error_keeps_the_rows_before_it() {
        let (rows, result) = run(leak(Odd { fail_at: Some(20), ..Odd::default() }), 3, 0, &[0]);
        assert_eq!(result.unwrap_err().to_string(), "odd tile");
        assert_eq!(rows.len(), 20);
    }

    #[test]
    fn a_panic_inside_fails_the_tile_by_name() {
        let (rows, result) = run(leak(Odd { panic_at: Some(5), ..Odd::default() }), 2, 0, &[0]);
        let message = result.unwrap_err().to_string();
        assert!(message.contains("t5"), "{message}");
        assert_eq!(rows.len(), 5);
    }

    #[test]
    fn values_that_are_no_numbers_are_not_written() {
        let (rows, result) = run(leak(Odd::default()), 1, 0, &[1]);
        assert!(rows.is_empty());
        assert!(result.unwrap_err().to_string().contains("not a number"));
    }
}
