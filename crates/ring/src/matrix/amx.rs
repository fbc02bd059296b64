//! AMX: products of byte matrices, sixteen rows by sixteen columns by 64 at an instruction.
//!
//! A word is cut into limbs of a byte, w = sum of 2^(8i) w_i. Modulo 2^k with n = k / 8 limbs,
//! a b = sum over s < n of 2^(8s) times the sum over i + j = s of a_i b_j: 36 products of limbs for 64
//! bits, 10 for 32. The limbs of the left operand lie in memory from the least on, those of the right one
//! from the greatest on; the limb products of one s are then a single longer product of bytes.
//!
//! TDPBUUD adds up in 32 bits, modulo 2^32. The sum for s is wanted modulo 2^(k-8s): for k = 32, and
//! for k = 64 and s >= 4, that divides 2^32 and a wrapped sum is as good. Below, at most four limb
//! products of up to 255^2 are added for each inner index, and 4 * 255^2 * `CHUNK` < 2^32: no sum wraps.
//!
//! Weights stay in the layout of the other kernels and are cut into limbs block by block, which
//! costs a small part of a product with many rows. Where it, or cutting up the left operand, would take
//! longer than the product, as with a few rows or with few columns, [`pays`] leaves it to AVX-512.
//!
//! # Invariants
//! - [`multiply_add`] runs only where [`is_available`] is true: the processor has AMX and the vector
//!   instructions below, and the system has granted this process the tile state.
//! - Tiles are configured by [`Tiles`], all of 16 rows and 64 bytes, and released when it is dropped, so
//!   that a thread carries tile state only within a product. Nothing else in the process uses tiles;
//!   the compiler does not. The system saves them when it switches threads.
//! - A [`Product`] is checked: pointers into its views are computed from indices within their shapes.
//! - Offsets into [`Scratch`] stay within the sizes that it is allocated with; see there.

#![allow(unsafe_code)]

mod limbs;
#[cfg(test)]
mod tests;

use std::arch::asm;
use std::sync::OnceLock;

use super::panels::{LINE_BYTES, Panel, Panels};
use super::product::Product;
use super::{avx512, vector};
use crate::element::Element;

/// Rows of a tile, and columns of a tile of 32-bit sums.
const TILE: usize = 16;
/// Bytes of a row of a tile.
const DEPTH: usize = 64;
/// Bytes of a tile.
const TILE_BYTES: usize = TILE * DEPTH;
/// Two tiles of rows by two tiles of columns are multiplied at once.
const PAIR_BYTES: usize = 2 * TILE_BYTES;
/// Sums of one s for two by two tiles.
const SUM_BYTES: usize = 4 * TILE_BYTES;
/// The inner dimension that is multiplied at once.
const CHUNK: usize = 1024;
const _: () = assert!(4 * 255 * 255 * (CHUNK as u64) < 1 << 32);
/// Bytes of limbs of left rows that are held at once: with a strip of columns they stay in the
/// second-level cache.
const LEFT_BYTES: usize = 1 << 20;
/// Whether the processor has the instructions and the system grants the tile state, for which it is
/// asked once.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        avx512::is_available()
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
            && has_tiles()
            && is_granted()
    })
}

/// AMX-TILE and AMX-INT8, and their state enabled by the system.
fn has_tiles() -> bool {
    const TILE_AND_INT8: u32 = 0b11 << 24;
    const TILE_STATE: u32 = 0b11 << 17;
    // SAFETY: a processor with AVX-512 has these leaves of CPUID, and XGETBV is enabled.
    #[allow(unused_unsafe)]
    let (features, state) = unsafe {
        let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
        let (low, _high): (u32, u32);
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack, preserves_flags));
        (features, low)
    };
    features & TILE_AND_INT8 == TILE_AND_INT8 && state & TILE_STATE == TILE_STATE
}

/// Asks Linux for the tile data, which a process has to request before its first use of tiles.
fn is_granted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two integers and changes nothing but the permissions of this process.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Adds a product whose result has adjacent columns to it.
///
/// # Safety
/// [`is_available`] is true.
pub(super) unsafe fn multiply_add<E: Element>(product: &mut Product<'_, E>) {
    // SAFETY: what is available includes AVX-512.
    unsafe {
        if pays::<E>(product.rows(), product.right().rows(), product.right().columns()) {
            multiply_tiles(product);
        } else {
            avx512::multiply_add(product);
        }
    }
}

/// Whether a product takes clearly less time by tiles than by vectors, estimated in sixteenths of a
/// cycle.
///
/// A tile instruction takes 16 cycles. Cutting and joining were measured by themselves, per word of the
/// left operand, of the right one and of the result; vectors do eight 64-bit products in two cycles and
/// sixteen 32-bit ones in one and a half on the processors that have tiles.
fn pays<E: Element>(rows: usize, inner: usize, columns: usize) -> bool {
    let (limb_products, left_word, right_word, result_word, vector_product) =
        if E::BITS == 64 { (36, 22, 14, 35, 4.0) } else { (10, 11, 7, 18, 1.5) };
    let (depth, width) = (inner.next_multiple_of(DEPTH), columns.next_multiple_of(TILE));
    let tiles = rows.div_ceil(TILE) * (depth / DEPTH) * (width / TILE) * limb_products * 16 * 16;
    let passes = rows.div_ceil(row_pairs(E::BYTES, rows, inner) * 2 * TILE);
    let cutting = rows * depth * left_word + passes * depth * width * right_word;
    let joining = inner.div_ceil(CHUNK) * rows * width * result_word;
    let vectors = (rows * inner * columns) as f64 * vector_product;
    1.25 * (tiles + cutting + joining) as f64 <= vectors
}

/// Pairs of tiles of left rows that are cut into limbs at once.
fn row_pairs(limbs: usize, rows: usize, inner: usize) -> usize {
    let pair_bytes = limbs * inner.min(CHUNK).div_ceil(DEPTH) * PAIR_BYTES;
    rows.div_ceil(2 * TILE).min((LEFT_BYTES / pair_bytes).max(1))
}

/// # Safety
/// As [`multiply_add`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
unsafe fn multiply_tiles<E: Element>(product: &mut Product<'_, E>) {
    // SAFETY: the features are enabled here, and there are as many limbs as an element has bytes.
    unsafe {
        match E::BYTES {
            8 => multiply_limbs::<E, 8>(product),
            4 => multiply_limbs::<E, 4>(product),
            _ => unreachable!("elements have 4 or 8 bytes"),
        }
    }
}

/// Sixteen columns of the right operand or fewer.
#[derive(Clone, Copy)]
struct ColumnTile {
    first: usize,
    width: usize,
    /// The index of the first element, and elements from one row to the next.
    start: usize,
    stride: usize,
    /// Elements of a row that may be read: 16, or 8 in a narrow panel.
    readable: usize,
}

fn column_tiles<E: Element>(right: &Panels<E>) -> Vec<ColumnTile> {
    let tiles = right.panels().flat_map(|Panel { first, width, stride, start }| {
        (0..width).step_by(TILE).map(move |offset| ColumnTile {
            first: first + offset,
            width: (width - offset).min(TILE),
            start: start + offset,
            stride,
            readable: (stride - offset).min(TILE),
        })
    });
    tiles.collect()
}

/// # Safety
/// As [`multiply_add`]; the caller has the vector instructions enabled, and `LIMBS` is the number of
/// bytes of an element.
#[inline(always)]
unsafe fn multiply_limbs<E: Element, const LIMBS: usize>(product: &mut Product<'_, E>) {
    assert!(product.has_adjacent_columns(), "the columns of the result are not adjacent");
    let (right, rows) = (product.right(), product.rows());
    let inner = right.rows();
    let parts = vector::Part::of(product.left());
    let columns = column_tiles(right);
    let (out_stride, out) = (product.out().strides()[0], product.out().as_mut_ptr());
    let most_blocks = inner.min(CHUNK).div_ceil(DEPTH);
    let pairs = row_pairs(LIMBS, rows, inner);
    let mut scratch = Scratch::new(LIMBS, most_blocks, pairs);
    // SAFETY: the processor has tiles, and they are released before anything else runs.
    let _tiles = unsafe { Tiles::configure() };
    for start in (0..inner).step_by(CHUNK) {
        let depth = (inner - start).min(CHUNK);
        let blocks = depth.div_ceil(DEPTH);
        for top in (0..rows).step_by(pairs * 2 * TILE) {
            let height = (rows - top).min(pairs * 2 * TILE);
            // SAFETY: `start + depth <= inner`, `top + height <= rows`, and the limbs of `pairs` pairs and
            // of two tiles of columns, each `blocks <= most_blocks` deep, fit into the scratch memory.
            unsafe {
                limbs::cut_left::<E, LIMBS>(&parts, top..top + height, start..start + depth, scratch.left());
            }
            for strip in columns.chunks(2) {
                for (index, tile) in strip.iter().enumerate() {
                    // SAFETY: as above; the tile lies within the right operand.
                    unsafe {
                        let target = scratch.right().add(index * TILE_BYTES);
                        limbs::cut_right::<E, LIMBS>(right, *tile, start..start + depth, target);
                    }
                }
                for first in (0..height).step_by(2 * TILE) {
                    let height = (height - first).min(2 * TILE);
                    // SAFETY: as above; rows `top + first ..` and the columns of the strip exist in the
                    // result.
                    unsafe {
                        let left = scratch.left().add(first / (2 * TILE) * LIMBS * blocks * PAIR_BYTES);
                        for s in 0..LIMBS {
                            let limb = scratch.right().add((LIMBS - 1 - s) * blocks * PAIR_BYTES);
                            let sums = scratch.sums().add(s * SUM_BYTES);
                            add_up(left, limb, (s + 1) * blocks, sums, height > TILE, strip.len() > 1);
                        }
                        for (index, tile) in strip.iter().enumerate() {
                            for row in 0..height {
                                let offset = (row / TILE * 2 + index) * TILE_BYTES + row % TILE * DEPTH;
                                let line = limbs::join::<E, LIMBS>(scratch.sums().add(offset));
                                let target = out.offset((top + first + row) as isize * out_stride);
                                let target = target.add(tile.first);
                                for (column, &sum) in line[..tile.width].iter().enumerate() {
                                    *target.add(column) += sum;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies `count` pairs of left tiles with `count` pairs of right tiles, which follow one another
/// in memory, and stores the two by two tiles of sums. Without `two_rows` or `two_columns` the
/// second tile of a pair is left out.
///
/// # Safety
/// The tiles are configured; `count` pairs can be read at `left` and `right`, and `SUM_BYTES` written at
/// `sums`.
#[inline]
unsafe fn add_up(
    left: *const u8,
    right: *const u8,
    count: usize,
    sums: *mut u8,
    two_rows: bool,
    two_columns: bool,
) {
    macro_rules! tiles {
        ([$($zero:literal)*] [$($step:literal)*] [$($store:literal)*]) => {
            // SAFETY: see the function; `count` is positive, as the inner dimension is.
            unsafe {
                asm!(
                    $($zero,)*
                    "2:",
                    $($step,)*
                    "add {left}, {pair}",
                    "add {right}, {pair}",
                    "dec {count}",
                    "jnz 2b",
                    $($store,)*
                    left = inout(reg) left => _,
                    right = inout(reg) right => _,
                    count = inout(reg) count => _,
                    sums = in(reg) sums,
                    row = in(reg) DEPTH,
                    pair = const PAIR_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            }
        };
    }
    match (two_rows, two_columns) {
        (true, true) => tiles!(
            ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"]
            [
                "tileloadd tmm4, [{left} + {row}]"
                "tileloadd tmm6, [{right} + {row}]"
                "tdpbuud tmm0, tmm4, tmm6"
                "tileloadd tmm7, [{right} + {row} + 1024]"
                "tdpbuud tmm1, tmm4, tmm7"
                "tileloadd tmm5, [{left} + {row} + 1024]"
                "tdpbuud tmm2, tmm5, tmm6"
                "tdpbuud tmm3, tmm5, tmm7"
            ]
            [
                "tilestored [{sums} + {row}], tmm0"
                "tilestored [{sums} + {row} + 1024], tmm1"
                "tilestored [{sums} + {row} + 2048], tmm2"
                "tilestored [{sums} + {row} + 3072], tmm3"
            ]
        ),
        (true, false) => tiles!(
            ["tilezero tmm0" "tilezero tmm2"]
            [
                "tileloadd tmm4, [{left} + {row}]"
                "tileloadd tmm6, [{right} + {row}]"
                "tdpbuud tmm0, tmm4, tmm6"
                "tileloadd tmm5, [{left} + {row} + 1024]"
                "tdpbuud tmm2, tmm5, tmm6"
            ]
            ["tilestored [{sums} + {row}], tmm0" "tilestored [{sums} + {row} + 2048], tmm2"]
        ),
        (false, true) => tiles!(
            ["tilezero tmm0" "tilezero tmm1"]
            [
                "tileloadd tmm4, [{left} + {row}]"
                "tileloadd tmm6, [{right} + {row}]"
                "tdpbuud tmm0, tmm4, tmm6"
                "tileloadd tmm7, [{right} + {row} + 1024]"
                "tdpbuud tmm1, tmm4, tmm7"
            ]
            ["tilestored [{sums} + {row}], tmm0" "tilestored [{sums} + {row} + 1024], tmm1"]
        ),
        (false, false) => tiles!(
            ["tilezero tmm0"]
            [
                "tileloadd tmm4, [{left} + {row}]"
                "tileloadd tmm6, [{right} + {row}]"
                "tdpbuud tmm0, tmm4, tmm6"
            ]
            ["tilestored [{sums} + {row}], tmm0"]
        ),
    }
}

/// The tile registers, configured. Dropping it returns them to their initial state.
struct Tiles(());

impl Tiles {
    /// # Safety
    /// The processor has AMX, the system has granted its use, and no other `Tiles` lives on this thread.
    unsafe fn configure() -> Self {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // The first eight are the tiles, the others are reserved.
        configuration.row_bytes[..8].fill(DEPTH as u16);
        configuration.rows[..8].fill(TILE as u8);
        // SAFETY: the configuration is 64 bytes and valid for palette 1, which has tiles of this size.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly, preserves_flags));
        }
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: only `configure` makes a value, where AMX may be used.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

/// Limbs of both operands and sums of their products. They are as secret as the operands, so the
/// memory is overwritten when it is dropped.
struct Scratch {
    lines: Vec<Line>,
    left_lines: usize,
    right_lines: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

impl Scratch {
    /// Memory for the limbs of `pairs` pairs of left tiles and of one pair of right tiles, each `blocks`
    /// deep, and for the sums of each s.
    fn new(limbs: usize, blocks: usize, pairs: usize) -> Self {
        let right_lines = limbs * blocks * PAIR_BYTES / LINE_BYTES;
        let left_lines = pairs * right_lines;
        let sum_lines = limbs * SUM_BYTES / LINE_BYTES;
        let lines = vec![Line([0; LINE_BYTES]); left_lines + right_lines + sum_lines];
        Scratch { lines, left_lines, right_lines }
    }

    fn left(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }

    fn right(&mut self) -> *mut u8 {
        self.lines[self.left_lines..].as_mut_ptr().cast()
    }

    fn sums(&mut self) -> *mut u8 {
        self.lines[self.left_lines + self.right_lines..].as_mut_ptr().cast()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.lines.fill(Line([0; LINE_BYTES]));
        // SAFETY: no instruction at all; the compiler has to assume that it reads the zeros, so it
        // can't leave out writing them. Writing volatile bytes one by one would take a good part of a
        // product's time.
        unsafe { asm!("/* {} */", in(reg) self.lines.as_ptr(), options(nostack, preserves_flags)) }
    }
}
