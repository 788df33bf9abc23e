//! The gene encoder: expression times embedding, pre-norm transformer blocks without positions,
//! attention pooling by one learned query. Invariant to the order of genes.

use burn::tensor::{Tensor, TensorData, activation};

use crate::Result;
use crate::diffusion::{Condition, Config, Effective, ops};
use crate::train::random::Stream;

/// Variance floor of LayerNorm.
const NORM_EPSILON: f64 = 1e-5;

/// Gene encoder with its weights on a device.
#[derive(Debug, Clone)]
pub struct GeneEncoder {
    table: Tensor<2>,
    query: Tensor<3>,
    blocks: Vec<Layer>,
    pool: Attention,
}

#[derive(Debug, Clone)]
struct Layer {
    norm1: Norm,
    attention: Attention,
    norm2: Norm,
    widen: Dense,
    narrow: Dense,
}

#[derive(Debug, Clone)]
struct Norm {
    scale: Tensor<1>,
    bias: Tensor<1>,
}

#[derive(Debug, Clone)]
struct Dense {
    weight: Tensor<2>,
    bias: Tensor<1>,
}

/// Multi-head attention with joint q, k, v projection.
#[derive(Debug, Clone)]
struct Attention {
    project: Dense,
    out: Dense,
    heads: usize,
}

impl Norm {
    fn new(effective: &Effective, prefix: &str) -> Result<Self> {
        Ok(Self {
            scale: effective.get(&format!("{prefix}.weight"))?,
            bias: effective.get(&format!("{prefix}.bias"))?,
        })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let d = self.scale.dims()[0];
        let centred = x.clone() - x.mean_dim(2);
        let variance = centred.clone().square().mean_dim(2);
        let normal = centred / variance.add_scalar(NORM_EPSILON).sqrt();
        normal * self.scale.clone().reshape([1, 1, d]) + self.bias.clone().reshape([1, 1, d])
    }
}

impl Dense {
    fn new(effective: &Effective, weight: &str, bias: &str) -> Result<Self> {
        Ok(Self { weight: effective.get(weight)?, bias: effective.get(bias)? })
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        apply(x, self.weight.clone(), self.bias.clone())
    }

    /// The rows `part * width ..` of the matrix only.
    fn forward_part(&self, x: Tensor<3>, part: usize, width: usize) -> Tensor<3> {
        let weight = self.weight.clone().narrow(0, part * width, width);
        apply(x, weight, self.bias.clone().narrow(0, part * width, width))
    }
}

/// `x [M, T, in]` times `weight [out, in]`, plus bias, as one matrix product.
fn apply(x: Tensor<3>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<3> {
    let [m, t, d] = x.dims();
    let out = weight.dims()[0];
    let y = x.reshape([m * t, d]).matmul(weight.transpose()) + bias.reshape([1, out]);
    y.reshape([m, t, out])
}

impl Attention {
    fn new(effective: &Effective, prefix: &str, heads: usize) -> Result<Self> {
        Ok(Self {
            project: Dense::new(
                effective,
                &format!("{prefix}.in_proj_weight"),
                &format!("{prefix}.in_proj_bias"),
            )?,
            out: Dense::new(
                effective,
                &format!("{prefix}.out_proj.weight"),
                &format!("{prefix}.out_proj.bias"),
            )?,
            heads,
        })
    }

    /// Queries `[M, Tq, d]` attend to tokens `[M, T, d]`.
    fn forward(&self, queries: Tensor<3>, tokens: Tensor<3>, dropout: &mut Dropout) -> Tensor<3> {
        let [m, tq, d] = queries.dims();
        let t = tokens.dims()[1];
        let width = d / self.heads;
        let split = |x: Tensor<3>, length: usize| {
            x.reshape([m, length, self.heads, width]).permute([0, 2, 1, 3])
        };
        let q = split(self.project.forward_part(queries, 0, d), tq);
        let k = split(self.project.forward_part(tokens.clone(), 1, d), t);
        let v = split(self.project.forward_part(tokens, 2, d), t);
        let scores = q.mul_scalar((width as f64).powf(-0.5)).matmul(k.swap_dims(2, 3));
        let attention = dropout.apply(ops::softmax_last(scores));
        let mixed = attention.matmul(v).permute([0, 2, 1, 3]).reshape([m, tq, d]);
        self.out.forward(mixed)
    }
}

/// Inverted dropout with masks from a reproducible stream; nothing outside training.
struct Dropout(Option<(f64, Stream)>);

impl Dropout {
    fn apply<const D: usize>(&mut self, x: Tensor<D>) -> Tensor<D> {
        let Some((probability, stream)) = &mut self.0 else { return x };
        let keep = 1.0 - *probability;
        if keep >= 1.0 || keep <= 0.0 {
            return x;
        }
        // Sixteen random bits decide one element: four elements a draw.
        let threshold = (keep * 65_536.0) as u64;
        let shape = x.dims();
        let count: usize = shape.iter().product();
        let scale = (1.0 / keep) as f32;
        let mut mask = Vec::with_capacity(count + 3);
        while mask.len() < count {
            let bits = stream.bits();
            for shift in [0, 16, 32, 48] {
                mask.push(if (bits >> shift) & 0xffff < threshold { scale } else { 0.0 });
            }
        }
        mask.truncate(count);
        let mask: Tensor<D> = Tensor::from_data(TensorData::new(mask, shape), &x.device().inner());
        x * mask
    }
}

impl GeneEncoder {
    /// The encoder of a network with a gene table.
    pub fn new(config: &Config, effective: &Effective) -> Result<Self> {
        let prefix = "unet.emb_gene.0";
        let heads = config.gene_heads;
        let layer = |k: usize| -> Result<Layer> {
            let p = format!("{prefix}.processor.{k}");
            let dense = |i: usize| {
                Dense::new(effective, &format!("{p}.ffn.{i}.weight"), &format!("{p}.ffn.{i}.bias"))
            };
            Ok(Layer {
                norm1: Norm::new(effective, &format!("{p}.norm1"))?,
                attention: Attention::new(effective, &format!("{p}.attn"), heads)?,
                norm2: Norm::new(effective, &format!("{p}.norm2"))?,
                widen: dense(0)?,
                narrow: dense(2)?,
            })
        };
        Ok(Self {
            table: effective.get(&format!("{prefix}.{}", config.table_name()))?,
            query: effective.get(&format!("{prefix}.aggregator.query"))?,
            blocks: (0..config.num_gene_blocks).map(layer).collect::<Result<_>>()?,
            pool: Attention::new(effective, &format!("{prefix}.aggregator.attn"), heads)?,
        })
    }

    /// One vector per image, `[M, d]`.
    pub fn forward(&self, condition: &Condition) -> Tensor<2> {
        let table = match &condition.rows {
            Some(rows) => self.table.clone().select(0, rows.clone()),
            None => self.table.clone(),
        };
        let [genes, d] = table.dims();
        let m = condition.values.dims()[0];
        let mut dropout = Dropout(condition.dropout.clone());
        let mut tokens =
            condition.values.clone().reshape([m, genes, 1]) * table.reshape([1, genes, d]);
        for block in &self.blocks {
            let normal = block.norm1.forward(tokens.clone());
            let mixed = block.attention.forward(normal.clone(), normal, &mut dropout);
            tokens = tokens + dropout.apply(mixed);
            let wide = activation::gelu(block.widen.forward(block.norm2.forward(tokens.clone())));
            tokens = tokens + dropout.apply(block.narrow.forward(wide));
        }
        let query = self.query.clone().expand([m, 1, d]);
        self.pool.forward(query, tokens, &mut dropout).reshape([m, d])
    }
}
