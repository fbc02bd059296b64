//! Matrix products modulo 2^64 of the size of a layer, for one query and for batches. The throughput
//! is in elements: one element is one multiplication and addition.

use std::hint::black_box;

use concilium_ring::{Element, PackedMatrix, Z64};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array2;

fn products(criterion: &mut Criterion) {
    let (inner, columns) = (784, 128);
    let right = Array2::from_shape_fn((inner, columns), |(i, j)| Z64::from_signed((i * 7 + j) as i64));
    let packed = PackedMatrix::pack(right.view());
    let mut group = criterion.benchmark_group("product with [784, 128] modulo 2^64");
    for rows in [1, 2, 4, 16, 128] {
        let left = Array2::from_shape_fn((rows, inner), |(i, j)| Z64::from_signed((i * j) as i64 - 5));
        let mut out = Array2::from_elem((rows, columns), Z64::ZERO);
        group.throughput(Throughput::Elements((rows * inner * columns) as u64));
        group.bench_function(format!("{rows} rows"), |bencher| {
            bencher.iter(|| packed.multiply_add(black_box(left.view()), out.view_mut()));
        });
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
