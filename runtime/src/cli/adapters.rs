//! `diffbulk info --adapters`.

use crate::Result;

/// Prints all adapters, the preferred first.
#[cfg(feature = "wgpu")]
pub(super) fn print_all(json: bool) -> Result<()> {
    use super::print;
    use crate::engine::gpu::adapter::{Adapter, CHOICE, CooperativeMatrices, adapters};

    let all = adapters();
    if json {
        return print(&super::info::pretty(&serde_json::json!({ "adapters": all }))?);
    }
    if all.is_empty() {
        return print(
            "no graphics adapter with a Vulkan, Metal or DX12 driver (Debian, in software: apt-get \
             install mesa-vulkan-drivers)\n",
        );
    }
    let matrices = |all: &[CooperativeMatrices]| match all {
        [] => "no".to_owned(),
        _ => {
            let one = |of: &CooperativeMatrices| {
                let kind = if of.half { "float16" } else { "float32" };
                format!("{0}x{0} of {kind}", of.side)
            };
            all.iter().map(one).collect::<Vec<_>>().join(" and ")
        }
    };
    let line = |(number, adapter): (usize, &Adapter)| {
        let yes = |is: bool| if is { "yes" } else { "no" };
        let subgroups = match adapter.subgroups {
            Some([least, most]) if least == most => format!("of {least}"),
            Some([least, most]) => format!("of {least} to {most}"),
            None => "no".into(),
        };
        format!(
            "{number}  {} ({}, {}, {})\n   float16 {}, subgroups {subgroups}, timestamps {}, cooperative \
             matrices {}, {} MiB a binding, {} KiB shared by a workgroup of {}\n",
            adapter.name,
            adapter.kind,
            adapter.backend,
            adapter.driver,
            yes(adapter.half),
            yes(adapter.timestamps),
            matrices(&adapter.cooperative_matrices),
            adapter.binding_bytes >> 20,
            adapter.workgroup_bytes >> 10,
            adapter.workgroup_threads
        )
    };
    let mut text: String = all.iter().enumerate().map(line).collect();
    text.push_str(&format!(
        "{CHOICE}=NUMBER or a part of the name chooses; --engine auto leaves software out\n"
    ));
    print(&text)
}

/// Says that this build has no engine for them.
#[cfg(not(feature = "wgpu"))]
pub(super) fn print_all(_json: bool) -> Result<()> {
    Err(crate::Error::Request(
        "this build has no wgpu engine; build it with --features wgpu".into(),
    ))
}
