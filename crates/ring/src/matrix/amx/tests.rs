//! The same machine code with its tile instructions emulated, for machines without AMX: the processor
//! refuses each one, and a signal handler does what the manual says and steps over it. Layouts,
//! limbs, addresses and encodings are checked in this way; the silicon is not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ndarray::{ArrayView2, ArrayViewMut2};
use proptest::prelude::*;

use super::*;
use crate::element::{Z32, Z64};
use crate::matrix::PackedMatrix;
use crate::matrix::kernel::CHECKED_SHAPES;
use crate::matrix::tests::{Case, agrees_by, case};

/// The tile registers. Only one thread at a time may hold [`Emulation`].
struct State {
    configured: bool,
    tiles: [[u8; TILE_BYTES]; 8],
    /// Instructions since the emulation began.
    count: usize,
}

static mut STATE: State = State { configured: false, tiles: [[0; TILE_BYTES]; 8], count: 0 };
static TURN: Mutex<()> = Mutex::new(());

/// While it lives, tile instructions of this thread are emulated.
struct Emulation {
    _turn: MutexGuard<'static, ()>,
    previous: libc::sigaction,
}

impl Emulation {
    /// None, with a message, where the processor has tiles or lacks the vector instructions.
    fn begin() -> Option<Self> {
        if has_tiles() {
            println!("skipped: this machine has AMX, so nothing needs to be emulated");
            return None;
        }
        if !(avx512::is_available()
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi"))
        {
            println!("skipped: this machine lacks the vector instructions beside AMX");
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the handler has the signature that SA_SIGINFO asks for; STATE is ours while the lock is.
        unsafe {
            STATE.count = 0;
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = emulate as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            let mut previous = std::mem::zeroed();
            assert_eq!(libc::sigaction(libc::SIGILL, &action, &mut previous), 0);
            Some(Emulation { _turn: turn, previous })
        }
    }

    /// Compares the product by tiles with the definition, however many rows there are.
    fn agrees<E: Element + std::fmt::Debug>(&self, case: Case) {
        // The transposition of a result is the caller's business.
        let case = Case { out: case.out.min(1), ..case };
        agrees_by::<E>("tiles", case, |packed, left, out| self.multiply_add(packed, left, out));
    }

    fn multiply_add<E: Element>(
        &self,
        packed: &PackedMatrix<E>,
        left: [ArrayView2<'_, E>; 2],
        out: ArrayViewMut2<'_, E>,
    ) {
        let [first, second] = &left;
        if let Some(mut product) = Product::new([first.reborrow(), second.reborrow()], &packed.0, out) {
            // SAFETY: the vector instructions are there and the others are emulated.
            unsafe { multiply_tiles(&mut product) }
        }
    }

    fn count(&self) -> usize {
        // SAFETY: the handler runs on this thread alone.
        unsafe { STATE.count }
    }
}

impl Drop for Emulation {
    fn drop(&mut self) {
        // SAFETY: restores what `begin` found.
        unsafe { libc::sigaction(libc::SIGILL, &self.previous, std::ptr::null_mut()) };
    }
}

extern "C" fn emulate(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system passes the registers of the interrupted thread, whose instruction lies at RIP.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = registers[libc::REG_RIP as usize] as *const u8;
        let state = &raw mut STATE;
        match (*state).step(code, registers) {
            Some(length) => registers[libc::REG_RIP as usize] += length as i64,
            // Another instruction: it is executed again and ends the process.
            None => drop(libc::signal(libc::SIGILL, libc::SIG_DFL)),
        }
    }
}

impl State {
    /// Executes the instruction at `code` and returns its length (Intel's Software Developer's Manual,
    /// volume 2, chapter 2.3 for the prefix and the AMX instructions by name).
    unsafe fn step(&mut self, code: *const u8, registers: &[i64; 23]) -> Option<usize> {
        // SAFETY: the processor has read the bytes; addresses are the program's own.
        unsafe {
            if *code != 0xc4 {
                return None;
            }
            let (first, second, opcode, modrm) = (*code.add(1), *code.add(2), *code.add(3), *code.add(4));
            // The map 0F38, W0, and 128 bits.
            if first & 0x1f != 2 || second & 0x84 != 0 {
                return None;
            }
            let source = usize::from(!(second >> 3) & 15);
            let (mode, target, operand) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
            let address = Address { code: code.add(4), extended: first, registers };
            self.count += 1;
            match (opcode, second & 3, mode) {
                (0x49, 0, 3) if modrm == 0xc0 => {
                    // TILERELEASE
                    *self = State { configured: false, tiles: [[0; TILE_BYTES]; 8], count: self.count };
                    Some(5)
                }
                (0x49, 0, 0..3) if target == 0 => {
                    // LDTILECFG: only the shape that the kernel uses.
                    let (pointer, length) = address.decode(false)?;
                    let bytes = std::slice::from_raw_parts(pointer, 64);
                    assert_eq!((bytes[0], bytes[1]), (1, 0), "palette and first row");
                    assert!(bytes[2..16].iter().all(|&byte| byte == 0), "reserved bytes");
                    assert!(bytes[16..32].chunks(2).all(|pair| pair == [64, 0]), "bytes of a row");
                    assert!(bytes[48..56].iter().all(|&rows| rows == 16), "rows");
                    assert!(bytes[32..48].iter().chain(&bytes[56..]).all(|&byte| byte == 0), "reserved");
                    *self = State { configured: true, tiles: [[0; TILE_BYTES]; 8], count: self.count };
                    Some(4 + length)
                }
                _ if !self.configured => None,
                (0x49, 3, 3) if operand == 0 => {
                    // TILEZERO
                    self.tiles[target] = [0; TILE_BYTES];
                    Some(5)
                }
                (0x4b, 2 | 3, 0..3) => {
                    // TILESTORED and TILELOADD: the index register is the distance of rows.
                    let (pointer, length) = address.decode(true)?;
                    let stride = address.index()?;
                    for (row, line) in self.tiles[target].chunks_exact_mut(DEPTH).enumerate() {
                        let memory = pointer.offset(row as isize * stride).cast_mut();
                        match second & 3 {
                            3 => line.copy_from_slice(std::slice::from_raw_parts(memory, DEPTH)),
                            _ => std::slice::from_raw_parts_mut(memory, DEPTH).copy_from_slice(line),
                        }
                    }
                    Some(4 + length)
                }
                (0x5e, 0, 3) => {
                    // TDPBUUD target, operand, source
                    if target == operand || target == source || operand == source {
                        return None;
                    }
                    let (left, right) = (self.tiles[operand], self.tiles[source]);
                    for (m, n) in (0..16).flat_map(|m| (0..16).map(move |n| (m, n))) {
                        let cell = &mut self.tiles[target][m * DEPTH + 4 * n..][..4];
                        let mut sum = u32::from_le_bytes(cell.try_into().expect("four bytes"));
                        for k in 0..DEPTH {
                            let product = u32::from(left[m * DEPTH + k])
                                * u32::from(right[k / 4 * DEPTH + 4 * n + k % 4]);
                            sum = sum.wrapping_add(product);
                        }
                        cell.copy_from_slice(&sum.to_le_bytes());
                    }
                    Some(5)
                }
                _ => None,
            }
        }
    }
}

/// The operand in memory of an instruction.
struct Address<'a> {
    /// The ModRM byte.
    code: *const u8,
    /// The byte of the prefix with the registers' inverted fourth bits.
    extended: u8,
    registers: &'a [i64; 23],
}

impl Address<'_> {
    fn register(&self, number: u8) -> i64 {
        use libc::*;
        const ORDER: [i32; 16] = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10,
            REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        self.registers[ORDER[usize::from(number)] as usize]
    }

    fn fourth_bit(&self, bit: u8) -> u8 {
        (!self.extended >> bit & 1) << 3
    }

    /// The value of the index register.
    fn index(&self) -> Option<isize> {
        // SAFETY: the byte after ModRM belongs to the instruction, whose operand has an index.
        let sib = unsafe { *self.code.add(1) };
        let number = (sib >> 3 & 7) | self.fourth_bit(6);
        // Number 4 is no index; the kernel always has one, without a scale.
        (number != 4 && sib >> 6 == 0).then(|| self.register(number) as isize)
    }

    /// The address without its index, and the length of ModRM and what follows.
    unsafe fn decode(&self, tile: bool) -> Option<(*const u8, usize)> {
        // SAFETY: the bytes belong to the instruction.
        unsafe {
            let modrm = *self.code;
            let (mode, mut base, mut length) = (modrm >> 6, modrm & 7, 1);
            let has_index = base == 4;
            if has_index {
                base = *self.code.add(1) & 7;
                length = 2;
            }
            // Tiles are always addressed with an index; an absolute address is not used.
            if tile != has_index && tile || mode == 0 && base == 5 {
                return None;
            }
            if has_index && !tile && *self.code.add(1) >> 3 & 7 != 4 {
                return None;
            }
            let displacement = match mode {
                0 => 0,
                1 => i64::from(self.code.add(length).cast::<i8>().read()),
                _ => i64::from(self.code.add(length).cast::<i32>().read_unaligned()),
            };
            length += [0, 1, 4][usize::from(mode)];
            let address = self.register(base | self.fourth_bit(5)) + displacement;
            Some((address as *const u8, length))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn emulated_tiles_agree_with_the_definition(case in case(1..=70)) {
        if let Some(emulation) = Emulation::begin() {
            emulation.agrees::<Z64>(case);
            emulation.agrees::<Z32>(case);
        }
    }
}

#[test]
fn limb_products_are_as_many_as_the_modulus_needs() {
    let Some(emulation) = Emulation::begin() else { return };
    // One block of the inner dimension and two by two tiles: zeroing, loading, multiplying, storing
    // for each s, besides the configuration and the release.
    let case = Case { seed: 1, rows: 32, inner: 64, columns: 32, split: 64, left: 0, out: 0 };
    emulation.agrees::<Z64>(case);
    assert_eq!(emulation.count(), 2 + 8 * (4 + 4) + 36 * (4 + 4));
    let before = emulation.count();
    emulation.agrees::<Z32>(case);
    assert_eq!(emulation.count() - before, 2 + 4 * (4 + 4) + 10 * (4 + 4));
    // SAFETY: only this thread has used it since.
    assert!(!unsafe { STATE.configured }, "tiles are released after a product");
}

#[test]
fn emulated_tiles_are_exact_at_the_largest_words() {
    let Some(emulation) = Emulation::begin() else { return };
    // Limbs of 255 throughout, over more than one chunk of the inner dimension.
    let inner = CHUNK + 200;
    let left = ndarray::Array2::from_elem((17, inner), Z64::from_signed(-1));
    let right = ndarray::Array2::from_elem((inner, 9), Z64::from_signed(-1));
    let mut out = ndarray::Array2::from_elem((17, 9), Z64::ZERO);
    let (first, second) = left.view().split_at(ndarray::Axis(1), 70);
    let packed = PackedMatrix::pack(right.view());
    emulation.multiply_add(&packed, [first, second], out.view_mut());
    assert!(out.iter().all(|sum| sum.to_unsigned() == inner as u64));
}

#[test]
fn many_rows_are_cut_into_blocks() {
    let Some(emulation) = Emulation::begin() else { return };
    let case = Case { seed: 2, rows: 150, inner: 1100, columns: 20, split: 500, left: 2, out: 1 };
    emulation.agrees::<Z64>(case);
    emulation.agrees::<Z32>(case);
}

#[test]
fn tiles_are_used_where_they_pay() {
    // Batches of a wide layer, but no single query, and no windows of a small convolution.
    assert!(pays::<Z64>(128, 784, 128) && pays::<Z64>(16, 784, 128) && pays::<Z32>(128, 784, 128));
    let (rows, inner, columns) = CHECKED_SHAPES[2];
    assert!(pays::<Z64>(rows, inner, columns) && pays::<Z32>(rows, inner, columns));
    assert!(!pays::<Z64>(1, 784, 128) && !pays::<Z64>(3, 784, 6400) && !pays::<Z32>(3, 784, 128));
    assert!(!pays::<Z64>(576, 25, 16) && !pays::<Z32>(576, 25, 16));
}
