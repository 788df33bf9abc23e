//! A module's parameters under the names they have in files.
//!
//! A file's name of a parameter is its path in the module, with three rules: a list of modules
//! counts from one and is joined to its name (`block` 0 becomes `block1`), the fields of a
//! [`GroupNorm`](burn::nn::GroupNorm) are `weight` and `bias`, and matrices are stored
//! [outputs, inputs], the transpose of burn's. So a file reads like the published code's.

use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::diffusion::{Array, Weights};
use crate::{Error, Result};

/// `array` as a tensor of rank `D`, if it is of that rank.
pub fn to_tensor<const D: usize>(array: &Array, device: &Device) -> Option<Tensor<D>> {
    let data = TensorData::new(array.data.clone(), array.shape.clone());
    (array.shape.len() == D).then(|| Tensor::from_data(data, device))
}

/// The values of a tensor.
pub fn to_array<const D: usize>(tensor: Tensor<D>) -> Array {
    let shape = tensor.dims().to_vec();
    let data = tensor.into_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
    Array { shape, data }
}

/// The transpose of a matrix; any other array as it is.
fn transposed(array: Array) -> Array {
    let [rows, columns] = array.shape[..] else { return array };
    let data = &array.data;
    let data = (0..columns).flat_map(|j| (0..rows).map(move |i| data[i * columns + j])).collect();
    Array { shape: vec![columns, rows], data }
}

/// Path of the module being visited, as a file's name.
#[derive(Default)]
struct Names {
    path: Vec<(String, String)>,
}

impl Names {
    fn enter(&mut self, name: &str, container: &str) {
        self.path.push((name.to_owned(), container.to_owned()));
    }

    fn exit(&mut self) {
        self.path.pop();
    }

    fn name(&self) -> String {
        let mut name = String::new();
        for (i, (part, container)) in self.path.iter().enumerate() {
            if container == "Vec" {
                let index: usize = part.parse().unwrap_or_default();
                name.push_str(&(index + 1).to_string());
                continue;
            }
            if i > 0 {
                name.push('.');
            }
            name.push_str(match part.as_str() {
                "gamma" if container == "Struct:GroupNorm" => "weight",
                "beta" if container == "Struct:GroupNorm" => "bias",
                other => other,
            });
        }
        name
    }
}

struct Reader<'a> {
    names: Names,
    take: &'a mut dyn FnMut(String, ParamId, Option<Array>),
    gradients: Option<&'a Gradients>,
}

impl ModuleVisitor for Reader<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.names.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = match self.gradients {
            None => Some(param.val().without_autodiff()),
            Some(gradients) => param.val().grad(gradients),
        };
        let array = tensor.map(|tensor| transposed(to_array(tensor)));
        (self.take)(self.names.name(), param.id, array);
    }
}

fn visit<M: Module>(
    module: &M,
    gradients: Option<&Gradients>,
    take: &mut dyn FnMut(String, ParamId, Option<Array>),
) {
    module.visit(&mut Reader { names: Names::default(), take, gradients });
}

/// All parameters of a module.
pub fn parameters<M: Module>(module: &M) -> Weights {
    let mut weights = Weights::new();
    visit(module, None, &mut |name, _, array| {
        array.into_iter().for_each(|array| weights.insert(name.clone(), array));
    });
    weights
}

/// The gradients of a module's parameters, of those that have one.
pub fn gradients<M: Module>(module: &M, gradients: &Gradients) -> Weights {
    let mut weights = Weights::new();
    visit(module, Some(gradients), &mut |name, _, array| {
        array.into_iter().for_each(|array| weights.insert(name.clone(), array));
    });
    weights
}

/// Names of a module's parameters with the identities by which an optimiser knows them.
pub fn identities<M: Module>(module: &M) -> Vec<(String, u64)> {
    let mut identities = Vec::new();
    visit(module, None, &mut |name, id, _| identities.push((name, id.val())));
    identities
}

struct Loader<'a> {
    names: Names,
    weights: &'a Weights,
    problems: Vec<String>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.names.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.names.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.names.name();
        let Some(array) = self.weights.get(&name) else {
            self.problems.push(format!("tensor {name} is missing"));
            return param;
        };
        let mut array = transposed(array.clone());
        // A published scalar is a tensor without axes; burn's have one at least.
        if array.shape.is_empty() && D == 1 {
            array.shape = vec![1];
        }
        let device = param.val().device();
        let needed = param.val().dims();
        match to_tensor::<D>(&array, &device) {
            Some(new) if array.shape == needed => {
                param.map(|old| new.set_require_grad(old.is_require_grad()))
            }
            _ => {
                let stored = transposed(array).shape;
                let mut needed = needed.to_vec();
                if D == 2 {
                    needed.reverse();
                }
                self.problems
                    .push(format!("tensor {name} has shape {stored:?}, {needed:?} needed"));
                param
            }
        }
    }
}

/// The module with its parameters from `weights`, all of which must be there; `path` is named in
/// errors.
pub fn with_parameters<M: Module>(module: M, weights: &Weights, path: &Path) -> Result<M> {
    let mut loader = Loader { names: Names::default(), weights, problems: Vec::new() };
    let module = module.map(&mut loader);
    match loader.problems.first() {
        None => Ok(module),
        Some(problem) => {
            let more = match loader.problems.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            let advice = "does its configuration belong to another file?";
            Err(Error::model(path, format!("{problem}{more}; {advice}")))
        }
    }
}

struct Identifier<'a> {
    names: Names,
    identities: &'a [(String, u64)],
}

impl ModuleMapper for Identifier<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.names.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.names.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.names.name();
        match self.identities.iter().find(|(known, _)| *known == name) {
            None => param,
            Some((_, id)) => {
                let (_, value, mapper) = param.consume();
                Param::from_mapped_value(ParamId::from(*id), value, mapper)
            }
        }
    }
}

/// The module with the identities its parameters had in another run, so that an optimiser's
/// saved state finds them.
pub fn with_identities<M: Module>(module: M, identities: &[(String, u64)]) -> M {
    module.map(&mut Identifier { names: Names::default(), identities })
}

/// Number of values in all parameters of a module.
pub fn count<M: Module>(module: &M) -> usize {
    parameters(module).iter().map(|(_, a)| a.data.len()).sum()
}
