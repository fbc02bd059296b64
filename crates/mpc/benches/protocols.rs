//! Shared randomness and the protocols, each for a thousand and for a hundred thousand values, with
//! all three parties in this process. A time is that of all three: from the moment at which the first
//! begins to the moment at which the last has its result.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::{Random, matrix};
use concilium_mpc::boolean::{self, Polynomial};
use concilium_mpc::comparison::sign;
use concilium_mpc::conversion::sum_bits;
use concilium_mpc::linear::rescale;
use concilium_mpc::local::{LocalChannel, run, share, share_bits, shared_randomness};
use concilium_mpc::selection::select_unless;
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::votes::one_hot_argmax;
use concilium_mpc::{Party, PartyIndex, Shares};
use concilium_ring::Z64;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const DEALER: PartyIndex = PartyIndex::ALL[0];
const SIZES: [usize; 2] = [1_000, 100_000];

/// Time of `repeats` runs of a protocol, one after the other in one session.
fn time(repeats: u64, protocol: impl Fn(&mut Party<LocalChannel>) + Sync) -> Duration {
    let barrier = Barrier::new(3);
    let times = run(1, |party| {
        let mut total = Duration::ZERO;
        for _ in 0..repeats {
            barrier.wait();
            let begin = Instant::now();
            protocol(party);
            barrier.wait();
            total += begin.elapsed();
        }
        total
    });
    times.into_iter().max().expect("there are three parties")
}

fn numbers(rows: usize, columns: usize) -> [Shares<Z64>; 3] {
    let mut random = Random(7);
    share(3, &matrix(rows, columns, || random.signed(20)))
}

fn randomness(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shared randomness");
    for words in [16, 1_000, 100_000] {
        let mut masked = vec![0; words];
        let mut mask = shared_randomness(1);
        group.throughput(Throughput::Bytes(8 * words as u64));
        group.bench_function(format!("{words} words"), |bencher| {
            bencher.iter(|| mask(black_box(&mut masked)));
        });
    }
    group.finish();
}

fn boolean(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("AND");
    for (bits, factors) in [(64_000, 2), (64_000, 4), (6_400_000, 2), (6_400_000, 4)] {
        let mut random = Random(9);
        let plain: Vec<bool> = (0..factors * bits).map(|_| random.word() & 1 == 1).collect();
        let x = share_bits(5, &plain).map(|part| part.into_planes(factors, bits));
        let product = [Polynomial::product((0..factors).collect())];
        group.throughput(Throughput::Elements(bits as u64));
        group.bench_function(format!("{bits} of {factors} bits"), |bencher| {
            bencher.iter_custom(|repeats| {
                time(repeats, |party| {
                    let mine = &x[party.index().number()];
                    black_box(boolean::evaluate(party, DEALER, mine, &product).expect("local"));
                })
            });
        });
    }
    group.finish();
}

fn comparisons(criterion: &mut Criterion) {
    for window in [20, 32] {
        let mut group = criterion.benchmark_group(format!("sign in a window of {window} bits"));
        for count in SIZES {
            let x = numbers(1, count);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("{count} values"), |bencher| {
                bencher.iter_custom(|repeats| {
                    time(repeats, |party| {
                        let place = party.index().number();
                        black_box(sign(party, DEALER, &x[place], window).expect("local"));
                    })
                });
            });
        }
        group.finish();
    }
}

fn rescalings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rescaling");
    for count in SIZES {
        let x = numbers(1, count);
        let bounds = vec![30; count];
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count} values"), |bencher| {
            bencher.iter_custom(|repeats| {
                time(repeats, |party| {
                    let mut terms = AdditiveShare::zeros(1, count);
                    terms.terms_mut().assign(&x[party.index().number()].own());
                    black_box(rescale(party, DEALER, terms, &bounds, 12).expect("local"));
                })
            });
        });
    }
    group.finish();
}

fn selections(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("selection");
    for count in SIZES {
        let x = numbers(1, count);
        let mut random = Random(11);
        let plain: Vec<bool> = (0..count).map(|_| random.word() & 1 == 1).collect();
        let bits = share_bits(5, &plain);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count} values"), |bencher| {
            bencher.iter_custom(|repeats| {
                time(repeats, |party| {
                    let place = party.index().number();
                    black_box(select_unless(party, DEALER, &bits[place], &x[place]).expect("local"));
                })
            });
        });
    }
    group.finish();
}

fn argmax(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one-hot argmax of ten classes and its sum");
    for rows in [50, 6_400] {
        let x = numbers(rows, 10);
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("{rows} rows"), |bencher| {
            bencher.iter_custom(|repeats| {
                time(repeats, |party| {
                    let place = party.index().number();
                    let winners = one_hot_argmax(party, DEALER, &x[place], 24).expect("local");
                    black_box(sum_bits::<Z64, _>(party, DEALER, &winners, rows, 1).expect("local"));
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = randomness, boolean, comparisons, rescalings, selections, argmax
}
criterion_main!(benches);
