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
use concilium_mpc::selection::{select_unless, widen_unless};
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::votes::one_hot_argmax;
use concilium_mpc::{BitShares, Party, PartyIndex, Shares};
use concilium_ring::{Element, Z32, Z64};
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

fn numbers<E: Element>(rows: usize, columns: usize) -> [Shares<E>; 3] {
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
            let x = numbers::<Z64>(1, count);
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
    rescalings_in_ring::<Z64>(criterion, "rescaling");
    rescalings_in_ring::<Z32>(criterion, "rescaling, 32 bits");
}

fn rescalings_in_ring<E: Element>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group(name);
    for count in SIZES {
        let x = numbers::<E>(1, count);
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
    selections_in_ring::<Z64>(criterion, "selection", |party, bits, x| {
        black_box(select_unless(party, DEALER, bits, x).expect("local"));
    });
    selections_in_ring::<Z32>(criterion, "selection that widens, 32 bits", |party, bits, x| {
        black_box(widen_unless(party, DEALER, bits, x, 22).expect("local"));
    });
}

fn selections_in_ring<E: Element>(
    criterion: &mut Criterion,
    name: &str,
    select: fn(&mut Party<LocalChannel>, &BitShares, &Shares<E>),
) {
    let mut group = criterion.benchmark_group(name);
    for count in SIZES {
        let x = numbers::<E>(1, count);
        let mut random = Random(11);
        let plain: Vec<bool> = (0..count).map(|_| random.word() & 1 == 1).collect();
        let bits = share_bits(5, &plain);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count} values"), |bencher| {
            bencher.iter_custom(|repeats| {
                time(repeats, |party| {
                    let place = party.index().number();
                    select(party, &bits[place], &x[place]);
                })
            });
        });
    }
    group.finish();
}

fn argmax(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one-hot argmax of ten classes and its sum");
    for rows in [50, 6_400] {
        let x = numbers::<Z64>(rows, 10);
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
