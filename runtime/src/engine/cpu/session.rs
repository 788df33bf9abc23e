//! Runs a program, tile after tile.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{TractErrorContext, bail, ensure};

use super::arena::{Arena, Place, Scratch};
use super::program::{Program, Work};
use super::run;
use super::team::{Member, Team};

/// One tile at a time.
pub(super) struct CpuSession {
    program: Arc<Program>,
    arena: Arc<Arena>,
    scratch: Scratch,
    states: Vec<TypedSimpleState>,
    team: Option<Team>,
    /// Set when an operator panicked in any thread.
    broken: Arc<AtomicBool>,
    threads: usize,
}

impl CpuSession {
    /// A session of `threads` threads, the caller's one of them.
    ///
    /// # Errors
    /// When the system gives no thread, or tract no state.
    pub(super) fn new(program: Arc<Program>, threads: usize) -> TractResult<Self> {
        let threads = threads.max(1);
        let (arena, scratch) = Arena::new(program.arena_bytes, program.scratch)?;
        let arena = Arc::new(arena);
        let broken = Arc::new(AtomicBool::new(false));
        let states = program.tract_ops().map(|op| op.plan.spawn()).collect::<TractResult<_>>()?;
        let team = if threads == 1 {
            None
        } else {
            let team = Team::new(threads, |thread| {
                let (program, arena) = (Arc::clone(&program), Arc::clone(&arena));
                let broken = Arc::clone(&broken);
                let mut scratch = vec![0.0; program.scratch];
                Box::new(move |member: &Member| {
                    for k in 0..program.ops.len() {
                        // SAFETY: the barrier after every shared operator, below and in `run`, keeps
                        // all threads at the same operator.
                        let part =
                            || unsafe { part(&program, &arena, &mut scratch, k, thread, threads) };
                        if catch_unwind(AssertUnwindSafe(part)).is_err() {
                            broken.store(true, Ordering::SeqCst);
                        }
                        if needs_barrier(&program, k) {
                            member.wait();
                        }
                    }
                    member.wait();
                })
            })?;
            Some(team)
        };
        Ok(Self { program, arena, scratch, states, team, broken, threads })
    }

    /// Another session of the same program on one thread.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn again(&self) -> TractResult<Self> {
        let (arena, scratch) = Arena::new(self.program.arena_bytes, self.program.scratch)?;
        Ok(Self {
            program: Arc::clone(&self.program),
            arena: Arc::new(arena),
            scratch,
            states: self.states.clone(),
            team: None,
            broken: Arc::default(),
            threads: 1,
        })
    }

    /// Copies `bytes` into input `k`.
    ///
    /// # Errors
    /// When it has another length.
    pub(super) fn set_input(&mut self, k: usize, bytes: &[u8]) -> TractResult<()> {
        let slot = self.program.inputs.get(k).context("there is no such input")?;
        let len = slot.place.len * slot.element.size_of();
        ensure!(bytes.len() == len, "an input has {len} bytes, this one {}", bytes.len());
        let place = Place { len, ..slot.place };
        // SAFETY: no operator runs now: every run ends before its call returns.
        unsafe { self.arena.write(place, 0..len) }.copy_from_slice(bytes);
        Ok(())
    }

    /// The values of output `k`.
    ///
    /// # Errors
    /// When there is no such output of float32 values.
    pub(super) fn output(&self, k: usize) -> TractResult<&[f32]> {
        let slot = self.program.outputs.get(k).context("there is no such output")?;
        ensure!(slot.element == f32::datum_type(), "output {k} is of type {:?}", slot.element);
        // SAFETY: no operator runs while this session is borrowed.
        Ok(unsafe { self.arena.read(slot.place) })
    }

    /// The bytes of output `k`.
    pub(super) fn output_bytes(&self, k: usize) -> TractResult<&[u8]> {
        let slot = self.program.outputs.get(k).context("there is no such output")?;
        let place = Place { len: slot.place.len * slot.element.size_of(), ..slot.place };
        // SAFETY: no operator runs while this session is borrowed.
        Ok(unsafe { self.arena.read(place) })
    }

    /// Runs all operators on the inputs set before.
    ///
    /// # Errors
    /// When an operator of tract's fails.
    pub(super) fn run(&mut self) -> TractResult<()> {
        self.run_with(|_| {})
    }

    /// As [`CpuSession::run`]; calls `after` with each operator's number when it is done.
    pub(super) fn run_with(&mut self, mut after: impl FnMut(usize)) -> TractResult<()> {
        let member = self.team.as_ref().map(Team::member);
        if let Some(team) = &self.team {
            team.start();
        }
        let program = Arc::clone(&self.program);
        let mut outcome = Ok(());
        for k in 0..program.ops.len() {
            let done = catch_unwind(AssertUnwindSafe(|| self.step(&program, k)));
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => outcome = outcome.and(Err(error)),
                Err(_) => self.broken.store(true, Ordering::SeqCst),
            }
            if let (Some(member), true) = (&member, needs_barrier(&program, k)) {
                member.wait();
            }
            after(k);
        }
        if let Some(member) = &member {
            member.wait();
        }
        if self.broken.swap(false, Ordering::SeqCst) {
            bail!("an operator failed; this is a defect of the engine: run with --engine tract");
        }
        outcome
    }

    fn step(&mut self, program: &Program, k: usize) -> TractResult<()> {
        if let Work::Tract { inputs, outputs, state, .. } = &program.ops[k].work {
            // SAFETY: as for all operators: between two barriers only this thread runs it.
            return unsafe {
                run::run_tract(&mut self.states[*state], inputs, outputs, &self.arena)
            };
        }
        // SAFETY: the barriers keep all threads at the same operator.
        unsafe { part(program, &self.arena, self.scratch.as_mut_slice(), k, 0, self.threads) };
        Ok(())
    }
}

/// What `thread` does of operator `k`.
///
/// # Safety
/// All threads that use the arena are at this operator.
unsafe fn part(
    program: &Program,
    arena: &Arena,
    scratch: &mut [f32],
    k: usize,
    thread: usize,
    threads: usize,
) {
    let op = &program.ops[k];
    let parts = match (op.alone, thread) {
        (true, 0) => 0..op.parts,
        (true, _) => return,
        (false, _) => run::share(op, thread, threads),
    };
    // SAFETY: parts of different threads are different; the rest is the caller's promise.
    unsafe { run::run(op, program.isa, arena, scratch, parts) };
}

/// False where the operator and the next are both the first thread's alone.
fn needs_barrier(program: &Program, k: usize) -> bool {
    let alone = |k: usize| program.ops.get(k).is_none_or(|op| op.alone);
    !(alone(k) && alone(k + 1))
}
