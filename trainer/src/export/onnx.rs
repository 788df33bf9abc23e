//! Builds an ONNX graph node by node and writes it as one file.
//!
//! [`Graph`] keeps names unique, groups them by scope (`unet/`, `encoder/`, `head/`), and knows
//! which operators changed their form between the operator sets it may be asked for. The file
//! holds every weight itself (no external data).

use std::collections::HashSet;
use std::path::Path;

use prost::Message;
use tract_onnx::pb::{
    self, AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

use crate::{Error, Result};

/// A decoded ONNX file.
pub type Model = ModelProto;

/// The operator set a graph uses unless an inlined file needs a later one.
pub const OPSET: i64 = 17;

/// A tensor of the graph under construction, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value(String);

impl Value {
    /// The tensor of that name; for values of a graph that was read from a file.
    pub fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Element type of a graph input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// Unsigned byte.
    U8,
}

impl Element {
    fn code(self) -> i32 {
        match self {
            Self::F32 => DataType::Float as i32,
            Self::U8 => DataType::Uint8 as i32,
        }
    }
}

/// One dimension of a graph input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A fixed length.
    Fixed(usize),
    /// A length chosen at run time, by name.
    Symbol(&'static str),
}

/// A node's attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// One integer.
    Int(i64),
    /// Several integers.
    Ints(Vec<i64>),
    /// One float.
    Float(f32),
    /// A string.
    Text(&'static str),
}

impl Attribute {
    fn encode(self, name: &str) -> AttributeProto {
        let mut proto = AttributeProto { name: name.to_owned(), ..Default::default() };
        let kind = match self {
            Self::Int(i) => {
                proto.i = i;
                AttributeType::Int
            }
            Self::Ints(ints) => {
                proto.ints = ints;
                AttributeType::Ints
            }
            Self::Float(f) => {
                proto.f = f;
                AttributeType::Float
            }
            Self::Text(text) => {
                proto.s = text.as_bytes().to_vec();
                AttributeType::String
            }
        };
        proto.r#type = kind as i32;
        proto
    }
}

/// A convolution kernel, shape `[output channels, input channels / group, side, side]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// Output channels.
    pub out: usize,
    /// Input channels seen by one output channel.
    pub input: usize,
    /// Side of the square window.
    pub side: usize,
    /// Weights, row-major.
    pub data: Vec<f32>,
}

/// How a convolution walks over its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Step, the same in both directions.
    pub stride: usize,
    /// Zeros before the first row and column.
    pub before: usize,
    /// Zeros after the last row and column.
    pub after: usize,
    /// Channel groups (1: every output sees every input).
    pub groups: usize,
}

impl Window {
    /// Stride 1, output as large as the input, for an odd `side`.
    pub fn same(side: usize) -> Self {
        Self { stride: 1, before: side / 2, after: side / 2, groups: 1 }
    }
}

/// A graph under construction.
#[derive(Debug)]
pub struct Graph {
    graph: GraphProto,
    opset: i64,
    domains: Vec<OperatorSetIdProto>,
    scope: Vec<String>,
    taken: HashSet<String>,
}

impl Graph {
    /// An empty graph over operator set `opset` (at least [`OPSET`]).
    pub fn new(name: &str, opset: i64) -> Self {
        Self {
            graph: GraphProto { name: name.to_owned(), ..Default::default() },
            opset: opset.max(OPSET),
            domains: Vec::new(),
            scope: Vec::new(),
            taken: HashSet::new(),
        }
    }

    /// Runs `build` with `part` added to the front of every name it makes.
    pub fn scoped<T>(&mut self, part: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(part.to_owned());
        let result = build(self);
        self.scope.pop();
        result
    }

    /// The name `hint` in the current scope.
    pub fn path(&self, hint: &str) -> String {
        let mut path = self.scope.join("/");
        if !path.is_empty() && !hint.is_empty() {
            path.push('/');
        }
        path + hint
    }

    /// A name like `hint` in the current scope that nothing else has.
    fn unique(&mut self, hint: &str) -> String {
        let path = self.path(hint);
        let mut name = path.clone();
        let mut count = 1;
        while !self.taken.insert(name.clone()) {
            count += 1;
            name = format!("{path}_{count}");
        }
        name
    }

    /// Declares a graph input; its name is taken as it is, whatever the scope.
    pub fn input(&mut self, name: &str, element: Element, dims: &[Dim]) -> Value {
        self.taken.insert(name.to_owned());
        self.graph.input.push(value_info(name, element, dims));
        Value(name.to_owned())
    }

    /// Declares `value` as a graph output under the name `name`, which replaces its own.
    pub fn output(&mut self, name: &str, value: &Value, element: Element, dims: &[Dim]) {
        self.taken.insert(name.to_owned());
        for node in &mut self.graph.node {
            for used in node.input.iter_mut().chain(&mut node.output) {
                if *used == value.0 {
                    name.clone_into(used);
                }
            }
        }
        self.graph.output.push(value_info(name, element, dims));
    }

    /// A constant float tensor.
    pub fn f32(&mut self, hint: &str, dims: &[usize], data: &[f32]) -> Value {
        debug_assert_eq!(dims.iter().product::<usize>(), data.len());
        let raw = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(hint, DataType::Float, dims, raw)
    }

    /// A constant float scalar.
    pub fn scalar(&mut self, hint: &str, value: f64) -> Value {
        self.f32(hint, &[], &[value as f32])
    }

    /// A constant vector of 64-bit integers (axes, shapes).
    pub fn i64s(&mut self, hint: &str, data: &[i64]) -> Value {
        let raw = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(hint, DataType::Int64, &[data.len()], raw)
    }

    fn constant(&mut self, hint: &str, kind: DataType, dims: &[usize], raw: Vec<u8>) -> Value {
        let name = self.unique(hint);
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: kind as i32,
            raw_data: raw,
            ..Default::default()
        });
        Value(name)
    }

    /// Adds a node with one output.
    pub fn op(
        &mut self,
        op: &str,
        hint: &str,
        inputs: &[&Value],
        attributes: Vec<(&str, Attribute)>,
    ) -> Value {
        let name = self.unique(hint);
        self.node(op, &name, inputs, vec![name.clone()], attributes);
        Value(name)
    }

    /// Adds a node with `N` outputs.
    pub fn op_many<const N: usize>(
        &mut self,
        op: &str,
        hint: &str,
        inputs: &[&Value],
        attributes: Vec<(&str, Attribute)>,
    ) -> [Value; N] {
        let outputs: [Value; N] =
            std::array::from_fn(|index| Value(self.unique(&format!("{hint}.{index}"))));
        let names = outputs.iter().map(|value| value.0.clone()).collect();
        let name = self.unique(hint);
        self.node(op, &name, inputs, names, attributes);
        outputs
    }

    fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&Value],
        output: Vec<String>,
        attributes: Vec<(&str, Attribute)>,
    ) {
        self.graph.node.push(NodeProto {
            op_type: op.to_owned(),
            name: name.to_owned(),
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output,
            attribute: attributes.into_iter().map(|(name, value)| value.encode(name)).collect(),
            ..Default::default()
        });
    }

    /// Adds parts of a graph that was read from a file; names must already be unique.
    pub fn splice(
        &mut self,
        nodes: Vec<NodeProto>,
        initializers: Vec<TensorProto>,
        domains: &[OperatorSetIdProto],
    ) {
        for name in nodes.iter().flat_map(|node| &node.output) {
            self.taken.insert(name.clone());
        }
        for tensor in &initializers {
            self.taken.insert(tensor.name.clone());
        }
        self.graph.node.extend(nodes);
        self.graph.initializer.extend(initializers);
        for domain in domains {
            if !self.domains.iter().any(|known| known.domain == domain.domain) {
                self.domains.push(domain.clone());
            }
        }
    }

    /// The finished model, with `metadata` as its `metadata_props`.
    pub fn finish(self, metadata: Vec<(String, String)>) -> ModelProto {
        let mut opset_import =
            vec![OperatorSetIdProto { domain: String::new(), version: self.opset }];
        opset_import.extend(self.domains);
        // The oldest format version that may carry the operator set, for the widest readership.
        let ir_version = match self.opset {
            ..=18 => 8,
            19..=20 => 9,
            _ => 10,
        };
        let mut model = ModelProto {
            ir_version,
            opset_import,
            producer_name: "diffbulk-train".to_owned(),
            producer_version: crate::VERSION.to_owned(),
            graph: Some(self.graph),
            ..Default::default()
        };
        set_properties(&mut model, metadata);
        model
    }
}

/// Operators, each with the attributes this project uses.
impl Graph {
    /// A convolution over NCHW.
    pub fn conv(
        &mut self,
        hint: &str,
        x: &Value,
        kernel: &Kernel,
        bias: Option<&[f32]>,
        window: Window,
    ) -> Value {
        let shape = [kernel.out, kernel.input, kernel.side, kernel.side];
        let weight = self.f32(&format!("{hint}.weight"), &shape, &kernel.data);
        let mut inputs = vec![x.clone(), weight];
        if let Some(bias) = bias {
            inputs.push(self.f32(&format!("{hint}.bias"), &[kernel.out], bias));
        }
        let (stride, side) = (window.stride as i64, kernel.side as i64);
        let (before, after) = (window.before as i64, window.after as i64);
        let inputs: Vec<&Value> = inputs.iter().collect();
        self.op(
            "Conv",
            hint,
            &inputs,
            vec![
                ("kernel_shape", Attribute::Ints(vec![side, side])),
                ("strides", Attribute::Ints(vec![stride, stride])),
                ("pads", Attribute::Ints(vec![before, before, after, after])),
                ("group", Attribute::Int(window.groups as i64)),
            ],
        )
    }

    /// A linear layer over `[N, input]`: `weight` is `[output, input]`, row-major.
    pub fn linear(
        &mut self,
        hint: &str,
        x: &Value,
        weight: &[f32],
        shape: [usize; 2],
        bias: Option<&[f32]>,
    ) -> Value {
        let weight = self.f32(&format!("{hint}.weight"), &shape, weight);
        let mut inputs = vec![x.clone(), weight];
        if let Some(bias) = bias {
            inputs.push(self.f32(&format!("{hint}.bias"), &[shape[0]], bias));
        }
        let inputs: Vec<&Value> = inputs.iter().collect();
        self.op("Gemm", hint, &inputs, vec![("transB", Attribute::Int(1))])
    }

    /// Elementwise sum, with broadcasting.
    pub fn add(&mut self, hint: &str, a: &Value, b: &Value) -> Value {
        self.op("Add", hint, &[a, b], vec![])
    }

    /// Elementwise product, with broadcasting.
    pub fn mul(&mut self, hint: &str, a: &Value, b: &Value) -> Value {
        self.op("Mul", hint, &[a, b], vec![])
    }

    /// `x * sigmoid(x)`.
    pub fn silu(&mut self, hint: &str, x: &Value) -> Value {
        let gate = self.op("Sigmoid", &format!("{hint}.sigmoid"), &[x], vec![]);
        self.mul(hint, x, &gate)
    }

    /// Clips to `[low, high]`.
    pub fn clip(&mut self, hint: &str, x: &Value, low: f64, high: f64) -> Value {
        let low = self.scalar(&format!("{hint}.min"), low);
        let high = self.scalar(&format!("{hint}.max"), high);
        self.op("Clip", hint, &[x, &low, &high], vec![])
    }

    /// Joins along `axis`.
    pub fn concat(&mut self, hint: &str, values: &[&Value], axis: i64) -> Value {
        self.op("Concat", hint, values, vec![("axis", Attribute::Int(axis))])
    }

    /// A new shape; 0 keeps a dimension, -1 infers one.
    pub fn reshape(&mut self, hint: &str, x: &Value, shape: &[i64]) -> Value {
        let shape = self.i64s(&format!("{hint}.shape"), shape);
        self.op("Reshape", hint, &[x, &shape], vec![])
    }

    /// Permutes dimensions.
    pub fn transpose(&mut self, hint: &str, x: &Value, order: &[i64]) -> Value {
        self.op("Transpose", hint, &[x], vec![("perm", Attribute::Ints(order.to_vec()))])
    }

    /// The same numbers as 32-bit floats.
    pub fn to_f32(&mut self, hint: &str, x: &Value) -> Value {
        self.op("Cast", hint, &[x], vec![("to", Attribute::Int(DataType::Float as i64))])
    }

    /// `[N, ...]` to `[N, product of the rest]`.
    pub fn flatten(&mut self, hint: &str, x: &Value) -> Value {
        self.op("Flatten", hint, &[x], vec![("axis", Attribute::Int(1))])
    }

    /// Mean over `axes`, which stay as dimensions of length 1.
    pub fn mean(&mut self, hint: &str, x: &Value, axes: &[i64]) -> Value {
        // Operator set 18 turned the attribute into an input.
        if self.opset >= 18 {
            let axes = self.i64s(&format!("{hint}.axes"), axes);
            self.op("ReduceMean", hint, &[x, &axes], vec![("keepdims", Attribute::Int(1))])
        } else {
            let attributes =
                vec![("axes", Attribute::Ints(axes.to_vec())), ("keepdims", Attribute::Int(1))];
            self.op("ReduceMean", hint, &[x], attributes)
        }
    }

    /// Mean over height and width: `[N, C, H, W]` to `[N, C]`.
    pub fn spatial_mean(&mut self, hint: &str, x: &Value) -> Value {
        let pooled = self.op("GlobalAveragePool", &format!("{hint}.pool"), &[x], vec![]);
        self.flatten(hint, &pooled)
    }

    /// Standard deviation over height and width: `[N, C, H, W]` to `[N, C]`.
    pub fn spatial_std(&mut self, hint: &str, x: &Value) -> Value {
        let mean = self.op("GlobalAveragePool", &format!("{hint}.centre"), &[x], vec![]);
        let distance = self.op("Sub", &format!("{hint}.distance"), &[x, &mean], vec![]);
        let square = self.mul(&format!("{hint}.square"), &distance, &distance);
        let variance = self.spatial_mean(&format!("{hint}.variance"), &square);
        self.op("Sqrt", hint, &[&variance], vec![])
    }

    /// Halves height and width by the mean of every 2 x 2 block.
    pub fn halve(&mut self, hint: &str, x: &Value) -> Value {
        let attributes = vec![
            ("kernel_shape", Attribute::Ints(vec![2, 2])),
            ("strides", Attribute::Ints(vec![2, 2])),
        ];
        self.op("AveragePool", hint, &[x], attributes)
    }

    /// Doubles height and width by repeating every pixel.
    pub fn double(&mut self, hint: &str, x: &Value) -> Value {
        let scales = self.f32(&format!("{hint}.scales"), &[4], &[1.0, 1.0, 2.0, 2.0]);
        let none = Value(String::new());
        let attributes = vec![
            ("mode", Attribute::Text("nearest")),
            ("coordinate_transformation_mode", Attribute::Text("asymmetric")),
            ("nearest_mode", Attribute::Text("floor")),
        ];
        self.op("Resize", hint, &[x, &none, &scales], attributes)
    }

    /// Resizes height and width to `side`, bilinear with half-pixel centres.
    pub fn resize(&mut self, hint: &str, x: &Value, from: usize, side: usize) -> Value {
        let ratio = side as f32 / from as f32;
        let scales = self.f32(&format!("{hint}.scales"), &[4], &[1.0, 1.0, ratio, ratio]);
        let none = Value(String::new());
        let attributes = vec![
            ("mode", Attribute::Text("linear")),
            ("coordinate_transformation_mode", Attribute::Text("half_pixel")),
        ];
        self.op("Resize", hint, &[x, &none, &scales], attributes)
    }
}

fn value_info(name: &str, element: Element, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|dim| Dimension {
            value: Some(match dim {
                Dim::Fixed(length) => dimension::Value::DimValue(*length as i64),
                Dim::Symbol(symbol) => dimension::Value::DimParam((*symbol).to_owned()),
            }),
            ..Default::default()
        })
        .collect();
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: element.code(),
                shape: Some(TensorShapeProto { dim }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Reads an ONNX file.
pub fn read(path: &Path) -> Result<ModelProto> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let model = ModelProto::decode(bytes.as_slice()).map_err(|error| {
        Error::model(path, format!("is not an ONNX file ({error}); give a file ending in .onnx"))
    })?;
    if model.graph.is_none() {
        return Err(Error::model(path, "holds no graph; export it again"));
    }
    Ok(model)
}

/// Writes an ONNX file; it appears under its name only when whole.
pub fn write(path: &Path, model: &ModelProto) -> Result<()> {
    crate::train::atomic::write(path, &model.encode_to_vec())
}

/// Replaces the model's `metadata_props`.
pub fn set_properties(model: &mut ModelProto, properties: Vec<(String, String)>) {
    model.metadata_props =
        properties.into_iter().map(|(key, value)| StringStringEntryProto { key, value }).collect();
}

/// The value of `key` in the model's `metadata_props`.
pub fn property<'a>(model: &'a ModelProto, key: &str) -> Option<&'a str> {
    model.metadata_props.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
}

/// Version of the standard operator set the model declares.
pub fn declared_opset(model: &pb::ModelProto) -> i64 {
    model
        .opset_import
        .iter()
        .filter(|import| import.domain.is_empty() || import.domain == "ai.onnx")
        .map(|import| import.version)
        .max()
        .unwrap_or(1)
}
