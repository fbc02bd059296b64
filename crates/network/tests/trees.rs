//! Decision trees against a walk from root to leaf, and hostile ones.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{WithAttributes, model, node};
use concilium_network::{
    ImportError, InputDomain, Network, Ring, Rounding, argmax, choose_fractional_bits, import,
    onnx::{AttributeProto, NodeProto},
    quantise,
};
use ndarray::{Array2, ArrayView1};
use proptest::{collection::vec, prelude::*};
use prost::Message;

const FEATURES: usize = 4;
const CLASSES: usize = 3;

/// A tree in one line a node: either a test with the places of its children, or what a leaf says.
#[derive(Clone, Debug)]
enum Place {
    Test { feature: usize, mode: &'static str, threshold: f64, children: [usize; 2] },
    Leaf([f64; CLASSES]),
}

/// A tree of up to 2^depth leaves.
fn any_tree() -> impl Strategy<Value = Vec<Place>> {
    let modes = prop::sample::select(vec!["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT", "BRANCH_GTE"]);
    let test = (0..FEATURES, modes, -16_i32..16, any::<bool>(), [-8_i32..8, -8_i32..8, -8_i32..8]);
    vec(test, 1..16).prop_map(|drawn| {
        let mut places = Vec::new();
        grow(&drawn, 0, &mut places);
        places
    })
}

type Drawn = (usize, &'static str, i32, bool, [i32; 3]);

fn grow(drawn: &[Drawn], depth: usize, places: &mut Vec<Place>) -> usize {
    let here = places.len();
    let (feature, mode, threshold, leaf, says) = drawn[(7 * here + depth) % drawn.len()];
    // A quarter of what leaves say is a sixteenth, so that sums are exact.
    places.push(Place::Leaf(says.map(|number| f64::from(number) / 16.0)));
    if depth < 4 && (!leaf || depth == 0) {
        let children = [grow(drawn, depth + 1, places), grow(drawn, depth + 1, places)];
        // Between the numbers of the inputs, so that rounding does not decide.
        let threshold = f64::from(threshold) / 16.0 + 1.0 / 32.0;
        places[here] = Place::Test { feature, mode, threshold, children };
    }
    here
}

fn attribute(name: &str) -> AttributeProto {
    AttributeProto { name: name.to_owned(), ..Default::default() }
}

/// The operator for `trees`.
fn ensemble(trees: &[Vec<Place>]) -> NodeProto {
    let mut proto = node("TreeEnsembleClassifier", &["x"], "label");
    proto.domain = "ai.onnx.ml".to_owned();
    proto.output.push("y".to_owned());
    let mut lists: [Vec<i64>; 8] = Default::default();
    let [tree_ids, node_ids, features, first, second, class_trees, class_nodes, class_ids] = &mut lists;
    let (mut thresholds, mut weights, mut modes) = (Vec::new(), Vec::new(), Vec::new());
    for (tree, places) in trees.iter().enumerate() {
        for (id, place) in places.iter().enumerate() {
            tree_ids.push(tree as i64);
            node_ids.push(id as i64);
            let (feature, mode, threshold, children) = match place {
                Place::Test { feature, mode, threshold, children } => {
                    (*feature, *mode, *threshold, *children)
                }
                Place::Leaf(says) => {
                    for (class, &weight) in says.iter().enumerate() {
                        class_trees.push(tree as i64);
                        class_nodes.push(id as i64);
                        class_ids.push(class as i64);
                        weights.push(weight as f32);
                    }
                    (0, "LEAF", 0.0, [0, 0])
                }
            };
            features.push(feature as i64);
            modes.push(mode.as_bytes().to_vec());
            thresholds.push(threshold as f32);
            first.push(children[0] as i64);
            second.push(children[1] as i64);
        }
    }
    let names = [
        "nodes_treeids",
        "nodes_nodeids",
        "nodes_featureids",
        "nodes_truenodeids",
        "nodes_falsenodeids",
        "class_treeids",
        "class_nodeids",
        "class_ids",
    ];
    for (name, list) in names.into_iter().zip(&lists) {
        proto = proto.integers(name, list);
    }
    proto = proto.integers("classlabels_int64s", &[0, 1, 2]);
    proto.attribute.push(AttributeProto { strings: modes, ..attribute("nodes_modes") });
    proto.attribute.push(AttributeProto { floats: thresholds, ..attribute("nodes_values") });
    proto.attribute.push(AttributeProto { floats: weights, ..attribute("class_weights") });
    proto
}

fn imported(proto: NodeProto) -> Result<Network, ImportError> {
    import(&model(&[FEATURES as i64], vec![proto], vec![]).encode_to_vec())
}

fn walk(places: &[Place], row: ArrayView1<'_, f64>) -> [f64; CLASSES] {
    let mut here = 0;
    loop {
        match &places[here] {
            Place::Leaf(says) => return *says,
            Place::Test { feature, mode, threshold, children } => {
                let x = row[*feature];
                let answer = match *mode {
                    "BRANCH_LEQ" => x <= *threshold,
                    "BRANCH_LT" => x < *threshold,
                    "BRANCH_GT" => x > *threshold,
                    _ => x >= *threshold,
                };
                here = children[usize::from(!answer)];
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn trees_say_what_their_leaves_say(
        trees in vec(any_tree(), 1..6),
        numbers in vec(-16_i32..=16, 8 * FEATURES),
    ) {
        let rows = Array2::from_shape_vec((8, FEATURES), numbers).unwrap().mapv(|x| f64::from(x) / 16.0);
        let network = imported(ensemble(&trees)).unwrap_or_else(|error| panic!("{error}"));
        let mut expected: Array2<f64> = Array2::zeros((8, CLASSES));
        for (row, mut sums) in rows.outer_iter().zip(expected.outer_iter_mut()) {
            for places in &trees {
                sums.iter_mut().zip(walk(places, row)).for_each(|(sum, says)| *sum += says);
            }
        }
        prop_assert_eq!(&network.evaluate(rows.view()), &expected);
        let domain = InputDomain::new(vec![FEATURES], vec![-1.0], vec![1.0]).unwrap();
        let bits = choose_fractional_bits(Ring::Bits64, [&network], &domain).unwrap();
        let fixed = quantise(&network, &domain, bits).unwrap();
        let encoded = domain.encode(rows.view(), bits).unwrap();
        for rounding in [Rounding::Down, Rounding::Nearest] {
            let logits = fixed.evaluate(encoded.view(), rounding);
            let logits = logits.mapv(|logit| logit as f64 * 2_f64.powi(-(bits as i32)));
            // What the leaves say is rounded once for each tree.
            prop_assert!((&logits - &expected).iter().all(|error| error.abs() < 1e-2), "{logits} for {expected}");
        }
        prop_assert_eq!(network.depth(), 3, "two comparisons and three products, whatever the trees are");
    }
}

#[test]
fn a_leaf_alone_is_a_tree() {
    let network = imported(ensemble(&[vec![Place::Leaf([0.25, 0.5, 0.125])]])).unwrap();
    assert_eq!(argmax(network.evaluate(Array2::zeros((1, FEATURES)).view()).view())[0], 1);
}

/// The message that refuses the trees after `change`.
fn refused(change: impl Fn(&mut AttributeProto)) -> String {
    let test = Place::Test { feature: 1, mode: "BRANCH_LEQ", threshold: 0.5, children: [1, 2] };
    let tree = vec![test, Place::Leaf([1.0, 0.0, 0.0]), Place::Leaf([0.0, 1.0, 0.0])];
    let mut proto = ensemble(&[tree.clone(), tree]);
    proto.attribute.iter_mut().for_each(change);
    imported(proto).err().expect("must be refused").to_string()
}

fn integers(name: &str, list: &[i64]) -> impl Fn(&mut AttributeProto) {
    let (name, list) = (name.to_owned(), list.to_vec());
    move |attribute| {
        if attribute.name == name {
            attribute.ints = list.clone();
        }
    }
}

#[test]
fn broken_trees_are_refused() {
    let children = |first: &[i64]| refused(integers("nodes_truenodeids", first));
    assert!(
        children(&[0, 0, 0, 1, 0, 0]).contains("its root does not lead to"),
        "a node that leads to itself"
    );
    assert!(children(&[2, 0, 0, 1, 0, 0]).contains("two parents"));
    assert!(children(&[9, 0, 0, 1, 0, 0]).contains("tree 0 has no node 9"));
    assert!(children(&[-1, 0, 0, 1, 0, 0]).contains("nodes_truenodeids holds a negative number"));
    assert!(children(&[1, 0, 0]).contains("as many of each of the nodes' parameters"));
    assert!(refused(integers("nodes_nodeids", &[0, 1, 1, 0, 1, 2])).contains("tree 0 has two nodes 1"));
    assert!(refused(integers("nodes_featureids", &[4, 0, 0, 1, 0, 0])).contains("feature 4"));
    assert!(refused(integers("class_ids", &[3; 12])).contains("no leaf or no class"));
    assert!(refused(integers("class_nodeids", &[0; 12])).contains("no leaf or no class"));
    assert!(refused(integers("class_ids", &[])).contains("the classes' parameters"));
    assert!(
        refused(integers("classlabels_int64s", &[1])).contains("two logits")
            || refused(integers("classlabels_int64s", &[1])).contains("no leaf or no class")
    );
    let mode = |mode: &'static str| {
        refused(move |attribute| {
            if attribute.name == "nodes_modes" {
                attribute.strings[0] = mode.as_bytes().to_vec();
            }
        })
    };
    assert!(mode("BRANCH_EQ").contains("equality"));
    assert!(mode("BRANCH_SIDEWAYS").contains("no mode BRANCH_SIDEWAYS"));
    let number = |name: &'static str| {
        refused(move |attribute| {
            if attribute.name == name {
                attribute.floats[0] = f32::NAN;
            }
        })
    };
    assert!(number("nodes_values").contains("nodes_values is NaN at index 0"));
    assert!(number("class_weights").contains("class_weights is NaN at index 0"));
}

/// A chain of 40 000 nodes would have paths of a billion steps together.
#[test]
fn endless_chains_are_refused_without_walking_them() {
    let count = 20_000;
    let mut places = Vec::with_capacity(2 * count + 1);
    for place in 0..count {
        let children = [2 * place + 1, 2 * place + 2];
        places.push(Place::Test { feature: 0, mode: "BRANCH_LEQ", threshold: 0.0, children });
        places.push(Place::Leaf([1.0, 0.0, 0.0]));
    }
    places.push(Place::Leaf([0.0; CLASSES]));
    let error = imported(ensemble(&[places])).err().expect("must be refused").to_string();
    assert!(error.contains("the trees are too deep"), "{error}");
}
