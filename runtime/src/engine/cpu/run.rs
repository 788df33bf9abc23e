//! Runs one thread's share of one operator.

use std::ops::Range;

use diffbulk_kernels as kernels;
use kernels::{Epilogue, Isa, Residual, Second, Source};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::ensure;

use super::arena::{Arena, Place};
use super::plain;
use super::program::{Added, Op, Out, Port, Work};

/// The parts that `thread` of `threads` computes.
pub(super) fn share(op: &Op, thread: usize, threads: usize) -> Range<usize> {
    let units = op.parts.div_ceil(op.unit);
    let cut = |k: usize| (units * k / threads * op.unit).min(op.parts);
    cut(thread)..cut(thread + 1)
}

/// Computes `parts` of `op`.
///
/// # Safety
/// Nobody else uses the buffers that `op` writes, except for threads that compute other parts of it,
/// and nobody writes the buffers that it reads.
pub(super) unsafe fn run(
    op: &Op,
    isa: Isa,
    arena: &Arena,
    scratch: &mut [f32],
    parts: Range<usize>,
) {
    if parts.is_empty() {
        return;
    }
    // SAFETY: (all accesses to the arena below) preparing has checked that what an operator writes
    // overlaps nothing else it uses; the caller promises that other operators leave it alone; and
    // parts are rows, channels or outputs, so that different parts are different elements.
    unsafe {
        match &op.work {
            Work::Image { kernel, image, dst } => {
                let [_, width, channels] = kernel.out_shape();
                let dst = arena.write(*dst, scaled(&parts, width * channels));
                kernel.run(arena.read(*image), dst, parts);
            }
            Work::Conv { kernel, sources, out } => {
                let (dst, mut epilogue) = epilogue(out, arena, &parts);
                let map = |k: usize| Source::new(arena.read(sources[k]));
                if sources.len() == 1 {
                    kernel.run(&[map(0)], &mut epilogue, dst, scratch, parts);
                } else {
                    kernel.run(&[map(0), map(1)], &mut epilogue, dst, scratch, parts);
                }
            }
            Work::Integer { conv, out } => {
                conv.run(arena, scratch, parts, |reals, rows| {
                    if let Some(out) = out {
                        let (dst, mut epilogue) = epilogue(out, arena, &rows);
                        let source = Source::new(reals);
                        kernels::pointwise(
                            isa,
                            out.width,
                            out.channels,
                            source,
                            &mut epilogue,
                            dst,
                        );
                    }
                });
            }
            Work::Pointwise { source, factors, out } => {
                let (dst, mut epilogue) = epilogue(out, arena, &parts);
                let rows = scaled(&parts, out.width * out.channels);
                let source = Source {
                    data: arena.read_part(*source, rows),
                    scale: factors.as_deref(),
                    silu: false,
                };
                kernels::pointwise(isa, out.width, out.channels, source, &mut epilogue, dst);
            }
            Work::Upsample { source, dims, factors, out } => {
                let (dst, mut epilogue) = epilogue(out, arena, &parts);
                let source =
                    Source { data: arena.read(*source), scale: factors.as_deref(), silu: false };
                kernels::upsample_2x(isa, *dims, source, &mut epilogue, dst, parts);
            }
            Work::MeanPool { source, dims, out } => {
                let (dst, mut epilogue) = epilogue(out, arena, &parts);
                kernels::average_pool_2x2(
                    isa,
                    *dims,
                    arena.read(*source),
                    &mut epilogue,
                    dst,
                    parts,
                );
            }
            Work::Pool { pool, source, dims, dst, out_dims } => {
                let dst = arena.write(*dst, scaled(&parts, out_dims[1] * out_dims[2]));
                plain::pool(pool, arena.read(*source), *dims, dst, *out_dims, parts);
            }
            Work::Attention { kernel, source, dst, channels, width } => {
                let tokens = scaled(&parts, *width);
                let dst = arena.write(*dst, scaled(&tokens, *channels));
                kernel.run(arena.read(*source), dst, scratch, tokens);
            }
            Work::GroupNorm { kernel, source, dst, mean } => {
                let whole = |place: &Place| arena.write(*place, 0..place.len);
                kernel.run(
                    arena.read(*source),
                    dst.as_ref().map(whole),
                    mean.as_ref().map(whole),
                    scratch,
                );
            }
            Work::Moments { source, channels, mean, deviation } => {
                let mean = match mean {
                    Some(mean) => arena.write(*mean, parts.clone()),
                    None => &mut scratch[..parts.len()],
                };
                let deviation =
                    deviation.map(|deviation| arena.write::<f32>(deviation, parts.clone()));
                kernels::mean_std(isa, *channels, arena.read(*source), mean, deviation, parts);
            }
            Work::Dense { kernel, inputs, steps } => {
                let (vector, rest) = scratch.split_at_mut(kernel.inputs());
                let mut at = 0;
                for &input in inputs {
                    vector[at..at + input.len].copy_from_slice(arena.read(input));
                    at += input.len;
                }
                let values = &mut rest[..parts.len()];
                kernel.run(vector, kernels::Activation::None, values, parts.clone());
                plain::steps(steps, arena, values, parts.start, kernel.outputs(), [0, 0], 1);
            }
            Work::Residual { kernel, source, out } => {
                let (dst, mut epilogue) = epilogue(out, arena, &parts);
                kernel.run(arena.read(*source), &mut epilogue, dst, scratch, parts);
            }
            Work::Plain(map) => plain::map(map, arena, scratch, parts),
            Work::Layout { from, to, dims, into_map } => {
                plain::layout::<f32>(
                    arena.read(*from),
                    arena.write(*to, 0..to.len),
                    *dims,
                    *into_map,
                );
            }
            // The session runs them: each has its own state.
            Work::Tract { .. } => {}
        }
    }
}

fn scaled(parts: &Range<usize>, by: usize) -> Range<usize> {
    parts.start * by..parts.end * by
}

/// The rows of the destination and what happens on the way there.
///
/// # Safety
/// As [`run`].
#[expect(clippy::mut_from_ref, reason = "as in `Arena::write`: the caller sees to exclusive use")]
unsafe fn epilogue<'a>(
    out: &Out,
    arena: &'a Arena,
    rows: &Range<usize>,
) -> (&'a mut [f32], Epilogue<'a>) {
    let values = scaled(rows, out.width * out.channels);
    // SAFETY: as in `run`.
    unsafe {
        let epilogue = Epilogue {
            residual: match out.residual {
                Some(Added { place, scale, enlarged: true }) => {
                    Residual::Enlarged { data: arena.read(place), scale }
                }
                Some(Added { place, scale, enlarged: false }) => {
                    Residual::Add { data: arena.read_part(place, values.clone()), scale }
                }
                None => Residual::None,
            },
            pixel_norm: out.norm,
            activation: out.activation,
            second: out.second.map(|(scale, activation, place)| Second {
                data: arena.write(place, values.clone()),
                scale,
                activation,
            }),
            row_sums: None,
        };
        (arena.write(out.dst, values), epilogue)
    }
}

/// Runs an operator of tract's.
///
/// # Safety
/// As [`run`].
pub(super) unsafe fn run_tract(
    state: &mut TypedSimpleState,
    inputs: &[Port],
    outputs: &[Port],
    arena: &Arena,
) -> TractResult<()> {
    // SAFETY: as in `run`.
    let tensors = inputs
        .iter()
        .map(|port| unsafe { port.tensor(arena) }.map(IntoTValue::into_tvalue))
        .collect::<TractResult<TVec<TValue>>>()?;
    let results = state.run(tensors)?;
    for (port, result) in outputs.iter().zip(&results) {
        // SAFETY: as in `run`.
        unsafe { port.take(result, arena)? };
    }
    Ok(())
}

impl Port {
    /// # Safety
    /// As [`run`].
    unsafe fn tensor(&self, arena: &Arena) -> TractResult<Tensor> {
        // SAFETY: as in `run`; the element type is the buffer's.
        unsafe {
            if let Some(dims) = self.map {
                if self.element.size_of() == 1 {
                    let mut bytes = vec![0u8; self.place.len];
                    plain::layout(arena.read(self.place), &mut bytes, dims, false);
                    return Tensor::from_raw_dt(self.element, &self.shape, &bytes);
                }
                let mut values = vec![0.0f32; self.place.len];
                plain::layout(arena.read(self.place), &mut values, dims, false);
                return Tensor::from_shape(&self.shape, &values);
            }
            let bytes = Place { len: self.place.len * self.element.size_of(), ..self.place };
            Tensor::from_raw_dt(self.element, &self.shape, arena.read::<u8>(bytes))
        }
    }

    /// # Safety
    /// As [`run`].
    unsafe fn take(&self, tensor: &Tensor, arena: &Arena) -> TractResult<()> {
        ensure!(
            tensor.datum_type() == self.element && tensor.len() == self.place.len,
            "{tensor:?} came out for {:?} of {:?}",
            self.shape,
            self.element
        );
        let view = tensor.try_as_plain_ram()?;
        // SAFETY: as in `run`; the element type is the buffer's.
        unsafe {
            if let Some(dims) = self.map {
                let all = 0..self.place.len;
                if self.element.size_of() == 1 {
                    plain::layout(view.as_bytes(), arena.write::<u8>(self.place, all), dims, true);
                } else {
                    let to = arena.write::<f32>(self.place, all);
                    plain::layout(view.as_slice::<f32>()?, to, dims, true);
                }
            } else {
                let bytes = Place { len: self.place.len * self.element.size_of(), ..self.place };
                arena.write::<u8>(bytes, 0..bytes.len).copy_from_slice(view.as_bytes());
            }
        }
        Ok(())
    }
}
