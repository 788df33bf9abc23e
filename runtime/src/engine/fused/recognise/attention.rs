//! Self-attention over pixels, as EDM2's U-Net has it: queries, keys and values from one 1x1
//! convolution, each normalised over its head's channels.

use super::graph::{Graph, Id, Node, Op};
use super::norm::root_mean_square_norm;
use crate::engine::fused::list::{Attention, Channels};

/// One input of a matrix product, traced back to a slice of the heads `[1, 3 heads, dim, pixels]`:
/// what is sliced, the first head, and the axis letters of the product in that order.
struct Part {
    heads_of: Id,
    start: usize,
    end: usize,
    letters: String,
}

/// Letters of the axes before a transposition, from those after it.
fn before_transpose(letters: &str, order: &[usize]) -> Option<String> {
    let after: Vec<char> = letters.chars().collect();
    let mut before = vec![' '; order.len()];
    for (k, &axis) in order.iter().enumerate() {
        *before.get_mut(axis)? = *after.get(k)?;
    }
    Some(before.into_iter().collect())
}

fn transposed(graph: &Graph, id: Id) -> Option<(Id, Vec<usize>)> {
    let (node, order) = graph.made_by(id, |op| match op {
        Op::Transpose(order) => Some(order.clone()),
        _ => None,
    })?;
    Some((*node.inputs.first()?, order))
}

fn part(graph: &Graph, mut id: Id, letters: &str) -> Option<Part> {
    let mut letters = letters.to_owned();
    if let Some((input, order)) = transposed(graph, id) {
        letters = before_transpose(&letters, &order)?;
        id = input;
    }
    let (node, (start, end)) = graph.made_by(id, |op| match op {
        Op::Slice { axis: 1, start, end } => Some((*start, *end)),
        _ => None,
    })?;
    Some(Part { heads_of: *node.inputs.first()?, start, end, letters })
}

fn product(graph: &Graph, id: Id) -> Option<(&Node, [String; 3])> {
    graph.made_by(id, |op| match op {
        Op::EinSum(letters) => Some(letters.clone()),
        _ => None,
    })
}

/// True when `texts` are `pattern` after renaming letters one to one.
fn same_letters(texts: &[&str], pattern: &[&str]) -> bool {
    let mut names: Vec<(char, char)> = vec![];
    texts.len() == pattern.len()
        && texts.iter().zip(pattern).all(|(text, pattern)| {
            text.chars().count() == pattern.chars().count()
                && text.chars().zip(pattern.chars()).all(|(a, b)| {
                    match names.iter().find(|(x, y)| *x == a || *y == b) {
                        Some(&known) => known == (a, b),
                        None => {
                            names.push((a, b));
                            true
                        }
                    }
                })
        })
}

/// `softmax(scale * q k) v` for each head, from a map of queries, keys and values to a map.
pub(super) fn attention(graph: &Graph, id: Id) -> Option<(Op, Vec<Id>)> {
    graph.before(id, |op| matches!(op, Op::Reshape))?;
    let &[1, channels, _, _] = graph.dims(id) else { return None };
    let mut mixed = graph.through_reshapes(id);
    let mut order = vec![0, 1, 2, 3];
    if let Some((input, found)) = transposed(graph, mixed) {
        (mixed, order) = (input, found);
    }
    let (mix, [p, v, out]) = product(graph, mixed)?;
    let &[weights, values] = mix.inputs.as_slice() else { return None };
    // Axis letters of the result as [1, heads, dim, pixels].
    let out: String = order.iter().map(|&axis| out.chars().nth(axis)).collect::<Option<_>>()?;
    let value = part(graph, values, &v)?;
    let scores = graph.before(weights, |op| matches!(op, Op::Softmax(axes) if axes == &[3]))?;
    let (node, scale) = graph.made_by(scores, |op| match op {
        Op::Scale(Channels::One(scale)) => Some(*scale),
        _ => None,
    })?;
    let (scored, [q, k, s]) = product(graph, *node.inputs.first()?)?;
    let &[queries, keys] = scored.inputs.as_slice() else { return None };
    let (query, key) = (part(graph, queries, &q)?, part(graph, keys, &k)?);
    if !same_letters(&[&query.letters, &key.letters, &s], &["bhdm", "bhdn", "bhmn"])
        || !same_letters(&[&p, &value.letters, &out], &["bhmn", "bhdn", "bhdm"])
    {
        return None;
    }
    let heads = query.end;
    let thirds = [(query.start, query.end), (key.start, key.end), (value.start, value.end)];
    if thirds != [(0, heads), (heads, 2 * heads), (2 * heads, 3 * heads)]
        || query.heads_of != key.heads_of
        || query.heads_of != value.heads_of
    {
        return None;
    }
    let (x, norm) = match root_mean_square_norm(graph, query.heads_of) {
        Some((x, 2, epsilon)) => (x, Some(epsilon)),
        Some(_) => return None,
        None => (query.heads_of, None),
    };
    let &[1, all, dim, pixels] = graph.dims(x) else { return None };
    let map = graph.through_reshapes(x);
    let &[1, wide, height, width] = graph.dims(map) else { return None };
    let fits = all == 3 * heads
        && wide == 3 * heads * dim
        && channels == heads * dim
        && pixels == height * width
        && graph.dims(id)[2..] == [height, width];
    fits.then(|| (Op::Attention(Attention { heads, dim, norm, scale }), vec![map]))
}
