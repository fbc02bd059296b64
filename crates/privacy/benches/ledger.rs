//! Committed charges a second, and beside them what the disk's flush allows.
//!
//! `CONCILIUM_BENCH_FOLDER` says on which disk; without it that of temporary files is measured.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use concilium_privacy::{
    Charge, ContentDigest, Ledger, Mechanism, NanoRho, Participant, PrivacyUnit, RedbLedger, Release,
    RequestId, RequestKey, ResultBytes, Settlement, TaskPolicy,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

const OWNERS: usize = 20;
const RESULT_BYTES: usize = 200;

fn folder() -> TempDir {
    let parent = std::env::var_os("CONCILIUM_BENCH_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(parent).expect("a folder")
}

fn policy() -> TaskPolicy {
    TaskPolicy {
        task: "digits".to_owned(),
        epoch: 1,
        release: Release::Histogram,
        mechanism: Mechanism::DiscreteGaussian { sigma: "20".parse().expect("a number") },
        threshold: None,
        unit: PrivacyUnit::Record,
        models_per_owner: 1,
        bins: 10,
        cap_total: NanoRho::new(u64::MAX),
        cap_per_client: Some(NanoRho::new(u64::MAX)),
        cap_per_client_all_tasks: None,
        window: None,
        delta: "1e-5".parse().expect("a number"),
        declaration: None,
    }
}

/// Reserves and commits `charges` requests in each of `threads` threads, one request at a time.
fn commit(ledger: &RedbLedger, next: &AtomicU64, threads: u64, charges: u64) -> Duration {
    let policy = policy();
    let owners: Vec<_> = (0..OWNERS)
        .map(|owner| Participant { owner: format!("hospital-{owner:02}"), cap: Some(NanoRho::new(u64::MAX)) })
        .collect();
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..charges {
                    let number = u128::from(next.fetch_add(1, Ordering::Relaxed));
                    let key = RequestKey {
                        task: policy.task.clone(),
                        epoch: 1,
                        client: format!("clinic-{}", number % 50),
                        request: RequestId(number.to_le_bytes()),
                    };
                    let charge = Charge::new(key, ContentDigest([1; 32]), 1, &policy, &owners)
                        .expect("a valid charge");
                    let reserved =
                        ledger.reserve(&[charge]).pop().expect("an answer").expect("a reservation");
                    let result = ResultBytes::from(vec![7; RESULT_BYTES]);
                    ledger.commit(vec![Settlement::in_full(reserved, result)]).expect("a commit");
                }
            });
        }
    });
    begin.elapsed()
}

fn flush_alone(file: &mut File) {
    file.seek(SeekFrom::Start(0)).expect("a seek");
    file.write_all(&[1; 4096]).expect("a write");
    file.sync_data().expect("a flush");
}

fn ledger(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ledger");
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(8));
    let place = folder();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(place.path().join("flush"))
        .expect("a file");
    group.throughput(Throughput::Elements(1));
    group.bench_function("flush of one page alone", |bencher| bencher.iter(|| flush_alone(&mut file)));

    let next = AtomicU64::new(0);
    let ledger = RedbLedger::create(&place.path().join("ledger.redb")).expect("a new ledger");
    for threads in [1, 16, 64, 256] {
        group.throughput(Throughput::Elements(threads));
        group.bench_function(format!("one charge in each of {threads} threads"), |bencher| {
            bencher.iter_custom(|rounds| commit(&ledger, &next, threads, rounds));
        });
    }
    group.finish();
    ledger.verify().expect("sound");
}

criterion_group!(benches, ledger);
criterion_main!(benches);
