//! Decision trees, as secret comparisons and products: which features are compared with what, how the
//! trees branch and what their leaves say stays secret, only the numbers of trees, nodes and leaves do not.
//!
//! A product with secret weights gives t - x for every inner node, a step its answer b, 1 where
//! x <= t. A leaf is reached when all answers on its path are its own, so the sum of these, b or 1 - b,
//! less their number and a half, is above zero: another product for each tree, and another step. A
//! last product adds up what the leaves say. Every query takes all paths, so nothing shows which one it was.

use std::collections::HashMap;

use ndarray::{Array1, Array2, Array3};

use super::{
    classical::{classified, features},
    node::Node,
    value::{Failure, Value, mismatch, unsupported},
};
use crate::{
    erase::Erasing,
    limits::{MAXIMUM_CLASSES, MAXIMUM_SIZE},
    program::Convolution,
};

/// Most inner nodes or leaves of all trees together, padding included.
const MAXIMUM_PLACES: usize = MAXIMUM_SIZE;

/// An inner node or a leaf as the file has it.
struct Branch {
    feature: usize,
    threshold: f64,
    /// The answer, 1 or 0, of `±(threshold - x) >= 0` that leads to the first child.
    kind: Kind,
    /// Rows of the children in the file.
    children: [usize; 2],
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Leaf,
    /// Sign of threshold - x, and the answer that leads to the first child.
    Inner {
        sign: f64,
        first: bool,
    },
}

/// A leaf: its row in the file, and the answers on its path.
struct Leaf {
    row: usize,
    path: Vec<(usize, bool)>,
}

/// One tree: the rows of its inner nodes, and its leaves.
struct Tree {
    inner: Vec<usize>,
    leaves: Vec<Leaf>,
}

/// `TreeEnsembleClassifier`.
pub(super) fn tree_ensemble(node: &mut Node<'_>) -> Result<Value, Failure> {
    let value = features(node)?;
    let (branches, rows) = branches(node, value.features())?;
    let trees = trees(node, &branches, &rows)?;
    let places = |count: fn(&Tree) -> usize| trees.iter().map(count).max().unwrap_or(0).max(1);
    let (inner, outer) = (places(|tree| tree.inner.len()), places(|tree| tree.leaves.len()));
    if trees.len() * inner.max(outer) > MAXIMUM_PLACES {
        return unsupported(format!(
            "{} trees of up to {} leaves are too many; {MAXIMUM_PLACES} leaves in all are allowed",
            trees.len(),
            outer
        ));
    }
    let (groups, count) = (trees.len(), value.features());
    node.budget.charge(count.saturating_mul(groups * inner), node.name)?;
    let mut weights = Erasing::new(Array2::zeros((count, groups * inner)));
    let mut bias = Erasing::new(Array1::zeros(groups * inner));
    node.budget.charge(groups.saturating_mul(inner).saturating_mul(outer), node.name)?;
    let mut paths = Erasing::new(Array3::zeros((groups, inner, outer)));
    // Places without a leaf are never reached.
    let mut half = Erasing::new(Array1::from_elem(groups * outer, -1.0));
    for (group, tree) in trees.iter().enumerate() {
        for (place, &row) in tree.inner.iter().enumerate() {
            let branch = &branches[row];
            let Kind::Inner { sign, .. } = branch.kind else { continue };
            weights[(branch.feature, group * inner + place)] = -sign;
            bias[group * inner + place] = sign * branch.threshold;
        }
        for (place, leaf) in tree.leaves.iter().enumerate() {
            let mut summand = 0.5;
            for &(node, answer) in &leaf.path {
                paths[(group, node, place)] += if answer { 1.0 } else { -1.0 };
                summand -= f64::from(answer);
            }
            half[group * outer + place] = summand;
        }
    }
    let scores = leaf_scores(node, &trees, &rows, outer)?;
    let (scores, base, threshold) = scores;
    let classes = base.len();
    let builder = &mut *node.builder;
    let differences =
        value.multiplied(builder, weights, bias, vec![groups * inner], node.budget, node.name)?;
    let answers = builder.step(&differences, node.budget, node.name)?;
    let convolution = Convolution {
        channels: [groups * inner, groups * outer],
        groups,
        ..Convolution::per_channel(groups, 1)
    };
    let reached = builder.convolved(
        &answers,
        convolution,
        (paths, half),
        vec![groups * outer],
        node.budget,
        node.name,
    )?;
    let reached = builder.step(&reached, node.budget, node.name)?;
    let sums = reached.multiplied(builder, scores, base, vec![classes], node.budget, node.name)?;
    classified(node, sums, threshold)
}

/// Numbers of a file's list of indices.
fn indices(node: &Node<'_>, name: &str) -> Result<Vec<usize>, Failure> {
    let given = node.integers_attribute(name).unwrap_or_default();
    let known: Option<Vec<usize>> = given.iter().map(|&index| usize::try_from(index).ok()).collect();
    known.ok_or_else(|| node.broken(format!("{name} holds a negative number")).into())
}

/// Row of each (tree, node).
type Rows = HashMap<(usize, usize), usize>;

fn branches(node: &Node<'_>, features: usize) -> Result<(Vec<Branch>, Rows), Failure> {
    let names =
        ["nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_truenodeids", "nodes_falsenodeids"];
    let mut lists = Vec::with_capacity(names.len());
    for name in names {
        lists.push(indices(node, name)?);
    }
    let modes = node.texts_attribute("nodes_modes");
    let thresholds = Erasing::new(Array1::from_vec(node.floats_attribute("nodes_values")?));
    let count = lists[0].len();
    let lengths: Vec<usize> = lists.iter().map(Vec::len).chain([modes.len(), thresholds.len()]).collect();
    if count == 0 || lengths.iter().any(|&length| length != count) {
        return mismatch(node.name, "as many of each of the nodes' parameters", format!("{lengths:?}"));
    }
    let mut rows = Rows::with_capacity(count);
    for (row, (&tree, &id)) in lists[0].iter().zip(&lists[1]).enumerate() {
        if rows.insert((tree, id), row).is_some() {
            return Err(node.broken(format!("tree {tree} has two nodes {id}")).into());
        }
    }
    let mut branches = Vec::with_capacity(count);
    for row in 0..count {
        let inner = |sign, first| Kind::Inner { sign, first };
        let kind = match modes[row].as_str() {
            "LEAF" => Kind::Leaf,
            "BRANCH_LEQ" => inner(1.0, true),
            "BRANCH_GTE" => inner(-1.0, true),
            "BRANCH_LT" => inner(-1.0, false),
            "BRANCH_GT" => inner(1.0, false),
            "BRANCH_EQ" | "BRANCH_NEQ" => {
                return unsupported("trees that test for equality are not supported");
            }
            other => return Err(node.broken(format!("there is no mode {other} of a tree's node")).into()),
        };
        let mut branch = Branch { feature: 0, threshold: 0.0, kind, children: [row; 2] };
        if kind != Kind::Leaf {
            (branch.feature, branch.threshold) = (lists[2][row], thresholds[row]);
            if branch.feature >= features {
                let found = format!("feature {}", branch.feature);
                return mismatch(node.name, format!("features 0 to {}", features - 1), found);
            }
            for (place, list) in [3, 4].into_iter().enumerate() {
                let child = (lists[0][row], lists[list][row]);
                branch.children[place] = *rows.get(&child).ok_or_else(|| {
                    node.broken(format!("tree {} has no node {}, which another leads to", child.0, child.1))
                })?;
            }
        }
        branches.push(branch);
    }
    Ok((branches, rows))
}

/// Walks every tree from its root. Nodes that two others lead to, as in a cycle, are refused.
fn trees(node: &Node<'_>, branches: &[Branch], rows: &Rows) -> Result<Vec<Tree>, Failure> {
    let mut led_to = vec![false; branches.len()];
    for branch in branches.iter().filter(|branch| branch.kind != Kind::Leaf) {
        for child in branch.children {
            if std::mem::replace(&mut led_to[child], true) {
                return Err(node.broken("a node of a tree has two parents").into());
            }
        }
    }
    let mut roots: Vec<(usize, usize)> = Vec::new();
    let mut ids: Vec<_> = rows.iter().map(|(&(tree, _), &row)| (tree, row)).collect();
    ids.sort_unstable();
    roots.extend(ids.iter().filter(|&&(_, row)| !led_to[row]));
    let mut known: Vec<usize> = ids.iter().map(|&(tree, _)| tree).collect();
    known.dedup();
    if roots.iter().map(|&(tree, _)| tree).ne(known) {
        return Err(node.broken("a tree has no root or several").into());
    }
    let mut trees = Vec::with_capacity(roots.len());
    let mut places = 0;
    for (_, root) in roots {
        let mut tree = Tree { inner: Vec::new(), leaves: Vec::new() };
        let mut pending = vec![(root, Vec::new())];
        while let Some((row, path)) = pending.pop() {
            match branches[row].kind {
                Kind::Leaf => {
                    places += path.len() + 1;
                    tree.leaves.push(Leaf { row, path });
                }
                Kind::Inner { first, .. } => {
                    let place = tree.inner.len();
                    tree.inner.push(row);
                    for (child, answer) in branches[row].children.into_iter().zip([first, !first]) {
                        let path: Vec<_> = path.iter().copied().chain([(place, answer)]).collect();
                        pending.push((child, path));
                    }
                }
            }
            // A tree as deep as it has nodes would otherwise hold the square of them.
            if places > 64 * MAXIMUM_PLACES {
                return unsupported("the trees are too deep");
            }
        }
        trees.push(tree);
    }
    let reached: usize = trees.iter().map(|tree| tree.inner.len() + tree.leaves.len()).sum();
    if reached != branches.len() {
        return Err(node.broken("a tree has nodes that its root does not lead to").into());
    }
    Ok(trees)
}

/// What the leaves say, `[trees * leaves, classes]`, the scores before any tree, and the threshold of a
/// single score.
type Scores = (Erasing<ndarray::Ix2>, Erasing<ndarray::Ix1>, f64);

fn leaf_scores(node: &mut Node<'_>, trees: &[Tree], rows: &Rows, outer: usize) -> Result<Scores, Failure> {
    let (tree_ids, node_ids) = (indices(node, "class_treeids")?, indices(node, "class_nodeids")?);
    let class_ids = indices(node, "class_ids")?;
    let class_weights = Erasing::new(Array1::from_vec(node.floats_attribute("class_weights")?));
    let lengths = [tree_ids.len(), node_ids.len(), class_ids.len(), class_weights.len()];
    if lengths.iter().any(|&length| length != lengths[0]) || lengths[0] == 0 {
        return mismatch(node.name, "as many of each of the classes' parameters", format!("{lengths:?}"));
    }
    let labels = node.integers_attribute("classlabels_int64s").map_or(0, |labels| labels.len());
    let labels = labels.max(node.texts_attribute("classlabels_strings").len());
    // A single score for two classes, whichever of them the file gives it to.
    let single = labels == 2 && class_ids.iter().all(|&class| class == class_ids[0]);
    let classes = if single { 1 } else { labels };
    if !(1..=MAXIMUM_CLASSES).contains(&classes) {
        return mismatch(node.name, format!("1 to {MAXIMUM_CLASSES} classes"), format!("{classes}"));
    }
    let mut place_of: HashMap<usize, usize> = HashMap::new();
    for (group, tree) in trees.iter().enumerate() {
        place_of
            .extend(tree.leaves.iter().enumerate().map(|(place, leaf)| (leaf.row, group * outer + place)));
    }
    node.budget.charge(trees.len().saturating_mul(outer).saturating_mul(classes), node.name)?;
    let mut scores = Erasing::new(Array2::zeros((trees.len() * outer, classes)));
    for (entry, &weight) in class_weights.iter().enumerate() {
        let (key, class) = ((tree_ids[entry], node_ids[entry]), if single { 0 } else { class_ids[entry] });
        let place = rows.get(&key).and_then(|row| place_of.get(row));
        let (Some(&place), true) = (place, class < classes) else {
            let reason = format!("gives class {class} a weight at node {} of tree {}", key.1, key.0);
            return Err(node.broken(format!("{reason}, which is no leaf or no class")).into());
        };
        scores[(place, class)] += weight;
    }
    let given = node.floats_attribute("base_values")?;
    let base = Erasing::new(match given.len() {
        0 => Array1::zeros(classes),
        found if found == classes => Array1::from_vec(given),
        found => return mismatch(node.name, format!("{classes} base values"), format!("{found}")),
    });
    // A single score is a probability where all weights are positive, and a signed score otherwise.
    let positive = class_weights.iter().all(|&weight| weight >= 0.0);
    let probability = positive && matches!(node.text_attribute("post_transform").as_str(), "" | "NONE");
    Ok((scores, base, if probability { 0.5 } else { 0.0 }))
}
