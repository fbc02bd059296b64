//! Matrix products of the sizes of layers by each kernel of this machine. The throughput is in
//! elements: one element is one multiplication and addition. Times are those that the thread spent on
//! a processor, so other processes on the machine disturb them little.
//!
//! `cargo bench -p concilium-ring --bench product -- 'u64.*1x784x128'` runs a part.

#![allow(unsafe_code)]

use std::hint::black_box;

use concilium_ring::{Element, Kernel, PackedMatrix, Z32, Z64};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::{Array2, ArrayView2, s};

/// Rows, inner dimension and columns: a layer for a batch and for one query, the first layer of fifty
/// owners side by side, later layers, and convolutions as products with gathered windows.
const SHAPES: [(usize, usize, usize); 11] = [
    (128, 784, 128),
    (128, 128, 10),
    (32, 784, 128),
    (8, 784, 128),
    (3, 784, 128),
    (1, 784, 128),
    (1, 784, 6400),
    (8, 784, 6400),
    (576, 25, 16),
    (64, 400, 16),
    (32, 256, 100),
];

fn words<E: Element>(rows: usize, columns: usize) -> Array2<E> {
    Array2::from_shape_fn((rows, columns), |(i, j)| {
        E::from_unsigned(((i * columns + j + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    })
}

fn none<E: Element>(left: &Array2<E>) -> ArrayView2<'_, E> {
    left.slice(s![.., ..0])
}

fn products<E: Element>(criterion: &mut Criterion<ThreadTime>) {
    for (rows, inner, columns) in SHAPES {
        let mut group = criterion.benchmark_group(format!("u{} {rows}x{inner}x{columns}", E::BITS));
        group.throughput(Throughput::Elements((rows * inner * columns) as u64));
        let packed = PackedMatrix::pack(words::<E>(inner, columns).view());
        let left = words::<E>(rows, inner);
        let mut out = words::<E>(rows, columns);
        for kernel in Kernel::available() {
            group.bench_function(kernel.name(), |bencher| {
                bencher.iter(|| {
                    packed.multiply_add_with(kernel, black_box(left.view()), none(&left), out.view_mut());
                });
            });
        }
        group.finish();
    }
}

/// A server's term of a replicated product, as two products and as one of twice the inner dimension.
fn replicated(criterion: &mut Criterion<ThreadTime>) {
    for (rows, inner, columns) in SHAPES {
        let mut group = criterion.benchmark_group(format!("replicated u64 {rows}x{inner}x{columns}"));
        group.throughput(Throughput::Elements((2 * rows * inner * columns) as u64));
        let (sum, own) = (words::<Z64>(inner, columns), words::<Z64>(inner, columns));
        let apart = [&sum, &own].map(|matrix| PackedMatrix::pack(matrix.view()));
        let mut stacked = PackedMatrix::zeros(2 * inner, columns);
        stacked.add_block(0, 0, sum.view());
        stacked.add_block(inner, 0, own.view());
        let lefts = [words::<Z64>(rows, inner), words::<Z64>(rows, inner)];
        let mut out = words::<Z64>(rows, columns);
        group.bench_function("two products", |bencher| {
            bencher.iter(|| {
                for (packed, left) in apart.iter().zip(&lefts) {
                    packed.multiply_add(black_box(left.view()), out.view_mut());
                }
            });
        });
        group.bench_function("one product", |bencher| {
            bencher.iter(|| {
                stacked.multiply_add_pair(black_box(lefts[0].view()), lefts[1].view(), out.view_mut());
            });
        });
        group.finish();
    }
}

/// The time that this thread has run, in nanoseconds.
struct ThreadTime;

impl ThreadTime {
    fn now() -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes to `time` alone.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        assert_eq!(result, 0, "the system keeps no time of threads");
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}

impl Measurement for ThreadTime {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        Self::now()
    }

    fn end(&self, start: u64) -> u64 {
        Self::now() - start
    }

    fn add(&self, first: &u64, second: &u64) -> u64 {
        first + second
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        // Its values are nanoseconds, too.
        WallTime.formatter()
    }
}

criterion_group!(
    name = benches;
    config = Criterion::default().with_measurement(ThreadTime);
    targets = products::<Z64>, products::<Z32>, replicated
);
criterion_main!(benches);
