//! The integers of the shipped model, layer by layer, against the `cpu` engine's.

use std::sync::Arc;
use std::time::Duration;

use super::super::adapter::Device;
use super::super::map::Map;
use super::super::program::Program;
use super::super::resident::Resident;
use super::super::shader::Abilities;
use super::super::testing::adapter_or_skip;
use super::tiles;
use crate::engine::cpu;
use crate::engine::fused::*;
use crate::model::OnnxFile;
use crate::model::typed::typed;
use crate::model::widen::{Rounding, widen};

/// A map's values, `[height, width, channels]`, of the tile that was run last.
fn read(resident: &Resident, map: Map) -> Vec<f32> {
    let device = &resident.device.device;
    let (from, size) = match map.grid {
        Some(_) => (&resident.words, 4),
        None => (&resident.arena, 16),
    };
    let bytes = (map.pixels() * map.c4() * size) as u64;
    let copy = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(from, (map.offset * size) as u64, &copy, 0, bytes);
    resident.device.queue.submit([encoder.finish()]);
    copy.slice(..).map_async(wgpu::MapMode::Read, |_| {});
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let bytes = copy.slice(..).get_mapped_range().unwrap().to_vec();
    bytes
        .chunks_exact(size * map.c4())
        .flat_map(|pixel| {
            let all: Vec<f32> = match map.grid {
                Some(grid) => pixel.iter().map(|&byte| grid.real(byte.wrapping_add(128))).collect(),
                None => {
                    let (words, _) = pixel.as_chunks::<4>();
                    words.iter().map(|&word| f32::from_le_bytes(word)).collect()
                }
            };
            all[..map.channels].to_vec()
        })
        .collect()
}

#[test]
fn every_integer_of_the_shipped_model_is_the_processors() {
    if !adapter_or_skip() {
        return;
    }
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/her2st-edge-int8.onnx");
    let file = OnnxFile::open(&path).unwrap();
    let proto = widen(file.proto(), Rounding::Left);
    let graph = fuse(typed(&proto, &[1, 224, 224, 3]).unwrap()).unwrap();
    let reads: Vec<(&FusedOp, Grid, BufferId)> = graph
        .ops
        .iter()
        .filter_map(|op| match &op.core {
            Core::IntegerConv(conv) => Some((op, conv.input)),
            _ => None,
        })
        .flat_map(|(op, grid)| op.inputs.iter().map(move |input| (op, grid, input.buffer)))
        .collect();
    let kept: Vec<BufferId> = reads.iter().map(|(_, _, id)| *id).collect();
    let device = Arc::new(Device::open(false).unwrap());
    let tiles = tiles(224);
    let expected: Vec<_> =
        tiles.iter().map(|tile| cpu::testing::maps(graph.clone(), &kept, tile)).collect();
    let (mut all, mut wrong) = (0, vec![]);
    // From global memory, as a device in software does it, and from shared memory.
    for (shared, at) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let abilities = Abilities { shared, ..device.abilities(false) };
        let (program, maps) =
            Program::keeping(graph.clone(), abilities, &Default::default(), &kept).unwrap();
        let resident = Resident::new(Arc::clone(&device), Arc::new(program), 1).unwrap();
        let flight = resident.submit(0, &[&tiles[at]]).unwrap();
        resident.wait(flight, Duration::from_secs(60)).unwrap();
        for ((op, grid, id), expected) in reads.iter().zip(&expected[at]) {
            let found = read(&resident, maps[*id]);
            assert_eq!(found.len(), expected.len(), "{}", op.name);
            let differ = |(a, b): &(&f32, &f32)| grid.index(**a) != grid.index(**b);
            let off = found.iter().zip(expected).filter(differ).count();
            all += found.len();
            if off > 0 {
                wrong.push(format!("{}: {off} of {}", op.name, found.len()));
            }
        }
    }
    eprintln!("{all} integers in {} maps of two tiles, twice", kept.len());
    assert!(all > 10_000_000 && wrong.is_empty(), "of {all} integers differ: {wrong:#?}");
}
