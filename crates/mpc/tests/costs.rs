//! Counted traffic equals the cost table, and the table in `docs/` is the code's.

mod common;

use common::{Random, matrix};
use concilium_mpc::boolean::{self, Polynomial};
use concilium_mpc::cost::{self, Cost};
use concilium_mpc::linear::rescale;
use concilium_mpc::local::{LocalChannel, run, share, share_bits};
use concilium_mpc::shares::AdditiveShare;
use concilium_mpc::{
    Party, PartyIndex, Shares, Traffic, comparison, conversion, probability, product, selection, truncation,
    votes,
};
use concilium_ring::Z64;
use ndarray::{Array2, s};

/// Runs `program` with `dealer` and returns its counted cost.
fn counted(
    dealer: PartyIndex,
    values: &Array2<Z64>,
    program: impl Fn(&mut Party<LocalChannel>, &Shares<Z64>) -> (Traffic, Traffic) + Sync,
) -> Cost {
    let parts = share(5, values);
    let traffic = run(5, |party| program(party, &parts[party.index().number()]));
    let bytes = [0, 1, 2].map(|distance| {
        let (before, after) = &traffic[(dealer.number() + distance) % 3];
        after.bytes_sent - before.bytes_sent
    });
    let rounds = traffic[0].1.rounds - traffic[0].0.rounds;
    assert!(traffic.iter().all(|(before, after)| after.rounds - before.rounds == rounds));
    Cost { rounds, bytes }
}

#[test]
fn counted_traffic_is_the_stated_cost() {
    let mut random = Random(common::seed());
    for (rows, classes) in [(1, 10), (64, 2), (130, 3), (37, 7)] {
        let values: Array2<Z64> = matrix(rows, classes, || random.signed(20));
        let count = rows * classes;
        for dealer in PartyIndex::ALL {
            let cost = counted(dealer, &values, |party, x| {
                let mut terms = AdditiveShare::zeros(rows, classes);
                terms.terms_mut().assign(&x.own());
                let before = party.traffic().clone();
                rescale(party, dealer, terms, &vec![20; classes], 8).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::rescale(count, 8));
            for window in [2, 5, 16, 24, 32, 33, 64] {
                let cost = counted(dealer, &values, |party, x| {
                    let before = party.traffic().clone();
                    comparison::sign(party, dealer, x, window).expect("local");
                    (before, party.traffic().clone())
                });
                assert_eq!(cost, cost::sign(count, window), "window {window}, {count} numbers");
            }
            let bits = share_bits(1, &vec![true; count]);
            let cost = counted(dealer, &values, |party, x| {
                let before = party.traffic().clone();
                selection::select_unless(party, dealer, &bits[party.index().number()], x).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::select(count, 8));
            let planes = share_bits(1, &vec![true; 5 * count]).map(|part| part.into_planes(5, count));
            let polynomials = || {
                [Polynomial::sum(vec![vec![0], vec![1, 2], vec![1, 3, 4]]), Polynomial::product(vec![0, 4])]
            };
            let cost = counted(dealer, &values, |party, _| {
                let before = party.traffic().clone();
                let mine = &planes[party.index().number()];
                boolean::evaluate(party, dealer, mine, &polynomials()).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::polynomials(&polynomials(), count));
            let cost = counted(dealer, &values, |party, x| {
                let before = party.traffic().clone();
                selection::widen_unless(party, dealer, &bits[party.index().number()], x, 40).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::widen(count, 8));
            let cost = counted(dealer, &values, |party, x| {
                let before = party.traffic().clone();
                votes::one_hot_argmax(party, dealer, x, 32).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::one_hot_argmax(rows, classes, 32));
            let cost = counted(dealer, &values, |party, _| {
                let before = party.traffic().clone();
                let bits = &bits[party.index().number()];
                conversion::sum_bits::<Z64, _>(party, dealer, bits, 1, count).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::sum_bits(1, count, 8));
            let cost = counted(dealer, &values, |party, _| {
                let bits = &bits[party.index().number()];
                let sums = conversion::sum_bits::<Z64, _>(party, dealer, bits, 1, count).expect("local");
                let before = party.traffic().clone();
                sums.inject(party, &vec![0; count]).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::inject(count, 8));
            let bits = share_bits(1, &vec![true; 3 * rows]);
            let sums = |party: &mut Party<LocalChannel>| {
                let bits = &bits[party.index().number()];
                conversion::sum_bits::<Z64, _>(party, dealer, bits, 3, rows).expect("local")
            };
            let cost = counted(dealer, &values, |party, _| {
                let sums = sums(party);
                let before = party.traffic().clone();
                sums.reshare(party).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::reshare(rows, 8));
            let cost = counted(dealer, &values, |party, _| {
                let sums = sums(party);
                let before = party.traffic().clone();
                sums.rows_add_up_to(party, 3).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::zero_test(rows, 8));
            let cost = counted(dealer, &values, |party, x| {
                let winners = votes::one_hot_argmax(party, dealer, x, 32).expect("local");
                let sums = conversion::sum_bits::<Z64, _>(party, dealer, &winners, 1, rows).expect("local");
                let counts = sums.reshare(party).expect("local");
                let before = party.traffic().clone();
                counts.maximum(party, dealer).expect("local");
                (before, party.traffic().clone())
            });
            let stated = cost::maximum(rows, classes, 1, 8);
            assert_eq!(cost.bytes, stated.bytes);
            // A chain of messages that began before may reach into the first round.
            assert!([stated.rounds, stated.rounds - 1].contains(&cost.rounds), "{cost:?} {stated:?}");
            let cost = counted(dealer, &values, |party, _| {
                let noised = sums(party).inject(party, &vec![0; rows]).expect("local");
                let decisions = noised.at_least(party, dealer, 2, 32).expect("local");
                let before = party.traffic().clone();
                decisions.open_among_servers(party).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::open_decisions(rows));
            let cost = counted(dealer, &values, |party, x| {
                let before = party.traffic().clone();
                let row = Shares::new(
                    x.own().slice(s![..1, ..]).to_owned(),
                    x.next().slice(s![..1, ..]).to_owned(),
                );
                product::multiply_rows(party, x, &row).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::multiply(count, 8));
            let cost = counted(dealer, &values, |party, x| {
                let before = party.traffic().clone();
                truncation::sum_truncated(party, dealer, x, 4, 1 << 59, 1, classes).expect("local");
                (before, party.traffic().clone())
            });
            assert_eq!(cost, cost::sum_truncated(count));
            for (window, score_bits) in [(32, 12), (18, 20), (40, 8)] {
                let cost = counted(dealer, &values, |party, x| {
                    let before = party.traffic().clone();
                    probability::sum_of_probabilities(party, dealer, x, window, score_bits, 1, rows)
                        .expect("local");
                    (before, party.traffic().clone())
                });
                assert_eq!(cost, cost::probabilities(rows, classes, window, score_bits));
            }
        }
    }
}

/// When the server that deals the rescaling also deals the comparison, their first messages go out
/// in the same round.
#[test]
fn the_first_comparison_round_coincides_with_rescaling() {
    let values: Array2<Z64> = matrix(3, 3, || 5);
    let parts = share(1, &values);
    let rounds = |comparing: usize| {
        run(2, |party| {
            let mut terms = AdditiveShare::zeros(3, 3);
            terms.terms_mut().assign(&parts[party.index().number()].own());
            let x = rescale(party, PartyIndex::ALL[0], terms, &[20; 3], 8).expect("local");
            comparison::sign(party, PartyIndex::in_turn(comparing), &x, 32).expect("local");
            party.traffic().rounds
        })[0]
    };
    assert_eq!(rounds(0), cost::rescale(9, 8).rounds + cost::sign(9, 32).rounds - 1);
    assert_eq!(rounds(1), cost::rescale(9, 8).rounds + cost::sign(9, 32).rounds);
}

/// `docs/protocol-costs.md` holds the generated table. To renew it, run this test with
/// CONCILIUM_WRITE_DOCS=1.
#[test]
fn the_documented_table_is_generated() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol-costs.md");
    let text = format!(
        "# Protocol costs\n\nGenerated from `crates/mpc/src/cost.rs`; a test keeps it true and compares the \
         figures with counted traffic. Bits sent for each value in a large batch, payload only; rounds are the \
         longest chain of dependent messages. The dealer's role goes round, so over a network the three servers \
         send about the same.\n\n{}",
        cost::markdown_table()
    );
    if std::env::var_os("CONCILIUM_WRITE_DOCS").is_some() {
        std::fs::write(path, &text).expect("docs are writable");
    }
    let found = std::fs::read_to_string(path).expect("docs/protocol-costs.md is there");
    assert_eq!(found, text, "renew the table with CONCILIUM_WRITE_DOCS=1");
}
