use ndarray::{Array2, Axis, s};
use proptest::prelude::*;

use super::*;
use crate::element::{Z32, Z64};

/// A counter-based generator: cases are replayed from the numbers that proptest prints.
fn noise(seed: u64, index: usize) -> u64 {
    let mut word = seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

pub(super) fn random<E: Element>(seed: u64, rows: usize, columns: usize) -> Array2<E> {
    Array2::from_shape_fn((rows, columns), |(i, j)| E::from_unsigned(noise(seed, i * columns + j)))
}

/// How the operands of a case lie in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) seed: u64,
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
    /// Columns of the first left operand; the second one has the others.
    pub(super) split: usize,
    /// Left operands: 0 as they are, 1 transposed, 2 with gaps between rows, 3 every second element,
    /// 4 back to front, 5 the same row again and again.
    pub(super) left: u8,
    /// The result: 0 by itself, 1 columns of a wider matrix, 2 transposed.
    pub(super) out: u8,
}

pub(super) fn case(rows: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Case> {
    (any::<u64>(), rows, 0usize..140, 0usize..75, 0.0..=1.0, 0u8..6, 0u8..3).prop_map(
        |(seed, rows, inner, columns, split, left, out)| Case {
            seed,
            rows,
            inner,
            columns,
            split: (split * inner as f64) as usize,
            left,
            out,
        },
    )
}

/// Computes the case with a kernel and by the definition, and compares them; elements of the result's
/// surroundings must stay as they are.
pub(super) fn agrees<E: Element + std::fmt::Debug>(kernel: Kernel, case: Case) {
    agrees_by::<E>(kernel.name(), case, |packed, left, out| {
        packed.multiply_add_with(kernel, left[0], left[1], out);
    });
}

pub(super) fn agrees_by<E: Element + std::fmt::Debug>(
    name: &str,
    case: Case,
    multiply: impl Fn(&PackedMatrix<E>, [ArrayView2<'_, E>; 2], ArrayViewMut2<'_, E>),
) {
    let Case { seed, rows, inner, columns, .. } = case;
    let stored = random::<E>(seed, 2 * rows.max(inner) + 3, 2 * rows.max(inner) + 3);
    let left = match case.left {
        0 => stored.slice(s![..rows, ..inner]).to_owned(),
        _ => stored,
    };
    // One row, if the matrix has any.
    let line = left.slice(s![..left.nrows().min(1), ..inner]);
    let left = match case.left {
        0 => left.view(),
        1 => left.slice(s![..inner, ..rows]).reversed_axes(),
        2 => left.slice(s![1..1 + rows, 2..2 + inner]),
        3 => left.slice(s![..2 * rows;2, 1..1 + 2 * inner;2]),
        4 => left.slice(s![..rows;-1, ..inner;-1]),
        _ => line.broadcast((rows, inner)).unwrap(),
    };
    let right = random::<E>(seed ^ 1, inner, columns);
    let mut whole = random::<E>(seed ^ 2, rows.max(columns) + 9, rows.max(columns) + 9);
    let mut expected = whole.clone();
    let window = |whole: &mut Array2<E>, terms: &dyn Fn(ArrayViewMut2<'_, E>)| match case.out {
        0 => {
            let mut alone = whole.slice(s![..rows, ..columns]).to_owned();
            terms(alone.view_mut());
            whole.slice_mut(s![..rows, ..columns]).assign(&alone);
        }
        1 => terms(whole.slice_mut(s![4..4 + rows, 5..5 + columns])),
        _ => terms(whole.slice_mut(s![3..3 + columns, ..rows]).reversed_axes()),
    };
    let packed = PackedMatrix::pack(right.view());
    let (first, second) = left.split_at(Axis(1), case.split);
    window(&mut whole, &|out| multiply(&packed, [first, second], out));
    let product = portable::definition(left, right.view());
    window(&mut expected, &|mut out| out.zip_mut_with(&product, |sum, &term| *sum += term));
    assert!(whole == expected, "{name} differs from the definition in {case:?}, {} bits", E::BITS);
}

proptest! {
    #[test]
    fn kernels_agree_with_the_definition(case in case(0..=70)) {
        for kernel in Kernel::available() {
            agrees::<Z64>(kernel, case);
            agrees::<Z32>(kernel, case);
        }
    }

    #[test]
    fn blocks_add_up_to_the_matrix(seed: u64, rows in 1usize..20, cuts in (0usize..40, 0usize..40), columns in 0usize..30) {
        let (upper, lower) = (random::<Z64>(seed, rows, cuts.0 + cuts.1), random::<Z64>(seed ^ 1, 5, columns));
        let mut packed = PackedMatrix::zeros(rows + 5, cuts.0 + cuts.1 + columns);
        let (first, second) = upper.view().split_at(Axis(1), cuts.0);
        packed.add_block(0, 0, first);
        packed.add_block(0, cuts.0, second);
        packed.add_block(rows, cuts.0 + cuts.1, lower.view());
        packed.add_block(rows, cuts.0 + cuts.1, lower.view());
        let mut whole = Array2::from_elem((rows + 5, packed.columns()), Z64::ZERO);
        whole.slice_mut(s![..rows, ..cuts.0 + cuts.1]).assign(&upper);
        whole.slice_mut(s![rows.., cuts.0 + cuts.1..]).assign(&(&lower + &lower));
        // The product with the identity is the matrix itself.
        let identity = Array2::from_shape_fn((rows + 5, rows + 5), |(i, j)| Z64::from_unsigned(u64::from(i == j)));
        let mut out = Array2::from_elem(whole.dim(), Z64::ZERO);
        packed.multiply_add(identity.view(), out.view_mut());
        prop_assert_eq!(out, whole);
    }
}

#[test]
fn long_inner_dimensions_and_many_rows_are_cut_into_blocks() {
    let cases = [(9, 1030, 17), (300, 600, 19), (1, 5000, 33), (70, 2100, 40)];
    for kernel in Kernel::available() {
        for (rows, inner, columns) in cases {
            let case = Case { seed: 5, rows, inner, columns, split: inner / 2, left: 2, out: 1 };
            agrees::<Z64>(kernel, case);
            agrees::<Z32>(kernel, case);
        }
    }
}

#[test]
fn the_largest_words_do_not_overflow_a_sum() {
    for kernel in Kernel::available() {
        for (rows, inner) in [(1, 700), (40, 3000)] {
            let left = Array2::from_elem((rows, inner), Z64::from_signed(-1));
            let right = Array2::from_elem((inner, 33), Z64::from_signed(-1));
            let mut out = Array2::from_elem((rows, 33), Z64::ZERO);
            let (first, second) = left.view().split_at(Axis(1), 1);
            PackedMatrix::pack(right.view()).multiply_add_with(kernel, first, second, out.view_mut());
            assert!(out.iter().all(|sum| sum.to_unsigned() == inner as u64), "{}", kernel.name());
        }
    }
}

#[test]
fn kernels_that_cannot_run_here_are_named() {
    let names: Vec<_> = Kernel::available().iter().map(|kernel| kernel.name()).collect();
    for name in ["portable", "AVX2", "AVX-512", "AMX"] {
        if !names.contains(&name) {
            println!("skipped: this machine cannot run the {name} kernel");
        }
    }
    assert_eq!(names[0], "portable");
}

#[test]
fn the_fastest_right_kernel_is_selected() {
    let check = self_check();
    assert!(check.rejected.is_empty(), "{check:?}");
    assert_eq!(kernel_name(), Kernel::available().last().unwrap().name());
}

#[test]
fn memory_is_the_elements_and_their_padding() {
    assert_eq!(PackedMatrix::<Z64>::zeros(784, 128).memory_bytes(), 784 * 128 * 8);
    assert_eq!(PackedMatrix::<Z64>::zeros(128, 10).memory_bytes(), 128 * 16 * 8);
    assert_eq!(PackedMatrix::<Z64>::zeros(25, 6).memory_bytes(), 25 * 8 * 8);
    assert_eq!(PackedMatrix::<Z32>::zeros(25, 33).memory_bytes(), 25 * 48 * 4);
}
