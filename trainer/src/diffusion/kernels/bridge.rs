//! Runs a [`Kernel`] on tensors of the CPU backend and records it in the gradient graph.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Bytes, DType, Shape, Tensor};

use super::{Attempt, Kernel, Output, View};

type Tracked = Autodiff<Flex, NoCheckpointing>;

/// An input on the CPU, with its node where gradients are recorded.
enum Input {
    Plain(FlexTensor),
    Tracked(FlexTensor, NodeGuard),
}

/// The tensor's CPU primitive; `None` for other devices, types and gradient strategies.
fn input<const D: usize>(x: &Tensor<D>, tracked: bool) -> Option<Input> {
    let input = if tracked {
        let x = if x.is_autodiff() { x.clone() } else { x.clone().autodiff() };
        let (primitive, guard) = x.try_into_primitive::<Tracked>().ok()?.into_parts();
        Input::Tracked(primitive, guard)
    } else {
        Input::Plain(x.clone().try_into_primitive::<Flex>().ok()?)
    };
    let (Input::Plain(primitive) | Input::Tracked(primitive, _)) = &input;
    (primitive.dtype() == DType::F32).then_some(input)
}

/// Applies a kernel to one tensor.
pub fn apply1<K: Kernel<1>, const A: usize, const O: usize>(
    kernel: K,
    a: Tensor<A>,
) -> Attempt<Tensor<O>, Tensor<A>> {
    let tracked = a.is_autodiff();
    match input(&a, tracked) {
        Some(x) => {
            drop(a);
            Ok(run(kernel, [x], tracked))
        }
        None => Err(a),
    }
}

/// Applies a kernel to two tensors.
pub fn apply2<K: Kernel<2>, const A: usize, const B: usize, const O: usize>(
    kernel: K,
    a: Tensor<A>,
    b: Tensor<B>,
) -> Attempt<Tensor<O>, (Tensor<A>, Tensor<B>)> {
    let tracked = a.is_autodiff() || b.is_autodiff();
    match (input(&a, tracked), input(&b, tracked)) {
        (Some(x), Some(y)) => {
            drop((a, b));
            Ok(run(kernel, [x, y], tracked))
        }
        _ => Err((a, b)),
    }
}

fn run<K: Kernel<N>, const N: usize, const O: usize>(
    kernel: K,
    inputs: [Input; N],
    tracked: bool,
) -> Tensor<O> {
    let mut guards = Vec::with_capacity(N);
    let arrays = inputs.map(|input| match input {
        Input::Plain(x) => x.to_contiguous(),
        Input::Tracked(x, guard) => {
            guards.push(guard);
            x.to_contiguous()
        }
    });
    let output = with_views(&arrays, |views| kernel.forward(views));
    let output = primitive(output);
    match <[NodeGuard; N]>::try_from(guards) {
        Ok(guards) if tracked => {
            let prepared = Step(kernel).prepare::<NoCheckpointing>(guards).compute_bound();
            let output = match prepared.stateful() {
                OpsKind::Tracked(prep) => prep.finish(arrays, output),
                OpsKind::UnTracked(prep) => prep.finish(output),
            };
            Tensor::from_primitive::<Tracked>(output)
        }
        _ => Tensor::from_primitive::<Flex>(output),
    }
}

/// The backward step of a kernel; its state is the forward inputs.
#[derive(Debug)]
struct Step<K>(K);

impl<K: Kernel<N>, const N: usize> Backward<Flex, N> for Step<K> {
    type State = [FlexTensor; N];

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<Flex>(&ops.node).to_contiguous();
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let shape = dims(&grad);
        let grad = View { shape: &shape, data: values(&grad) };
        let results = with_views(&ops.state, |views| self.0.backward(views, grad, wanted));
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(result)) = (parent, result) {
                grads.register::<Flex>(parent.id, primitive(result));
            }
        }
    }
}

fn dims(x: &FlexTensor) -> Vec<usize> {
    x.layout().shape().iter().copied().collect()
}

/// Values of a contiguous tensor, which may start inside a larger buffer.
fn values(x: &FlexTensor) -> &[f32] {
    let storage = x.storage::<f32>();
    match x.layout().contiguous_offsets() {
        Some((start, end)) => &storage[start..end],
        None => storage,
    }
}

fn with_views<const N: usize, R>(
    arrays: &[FlexTensor; N],
    then: impl FnOnce([View<'_>; N]) -> R,
) -> R {
    let shapes = arrays.each_ref().map(dims);
    let views = std::array::from_fn(|i| View { shape: &shapes[i], data: values(&arrays[i]) });
    then(views)
}

fn primitive(output: Output) -> FlexTensor {
    let layout = Layout::contiguous(Shape::from(output.shape));
    FlexTensor::new(Bytes::from_elems(output.data), layout, DType::F32)
}
