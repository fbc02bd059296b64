//! Replicated shares as one server holds them.
//!
//! Shares have no `Debug`, no `PartialEq` and no method that puts components together. Memory is
//! overwritten when they are dropped.

use std::ops::Range;

use concilium_ring::{Element, wipe};
use ndarray::{Array2, ArrayView2, Axis, Slice, concatenate};

use crate::bits;
use crate::party::PartyIndex;

/// One server's part of a replicated arithmetic sharing of a matrix: components i and i + 1.
pub struct Shares<E: Element> {
    own: Array2<E>,
    next: Array2<E>,
}

impl<E: Element> Shares<E> {
    /// Joins components i (`own`) and i + 1 (`next`) of server i.
    ///
    /// # Panics
    /// If their shapes differ; whoever reads shares from outside checks lengths first.
    pub fn new(own: Array2<E>, next: Array2<E>) -> Self {
        assert_eq!(own.dim(), next.dim(), "the two components have different shapes");
        Shares { own, next }
    }

    pub(crate) fn from_vectors(shape: (usize, usize), own: Vec<E>, next: Vec<E>) -> Self {
        let array = |elements| Array2::from_shape_vec(shape, elements).expect("lengths match the shape");
        Shares { own: array(own), next: array(next) }
    }

    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        self.own.dim()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.own.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty()
    }

    /// Component i of server i.
    pub fn own(&self) -> ArrayView2<'_, E> {
        self.own.view()
    }

    /// Component i + 1 of server i.
    pub fn next(&self) -> ArrayView2<'_, E> {
        self.next.view()
    }

    pub(crate) fn own_slice(&self) -> &[E] {
        self.own.as_slice().expect("shares are kept in standard layout")
    }

    pub(crate) fn next_slice(&self) -> &[E] {
        self.next.as_slice().expect("shares are kept in standard layout")
    }

    /// Shares of a linear function of the matrix, which is applied to each component.
    pub(crate) fn linear(&self, function: impl Fn(ArrayView2<'_, E>) -> Array2<E>) -> Self {
        Shares::new(function(self.own()), function(self.next()))
    }

    /// The chosen ranges of columns side by side, as shares of their own.
    ///
    /// # Panics
    /// If a range leaves the matrix.
    pub fn columns(&self, ranges: &[Range<usize>]) -> Self {
        let parts: Vec<_> = ranges.iter().map(|range| (self, range.clone())).collect();
        Self::side_by_side(self.dim().0, &parts)
    }

    /// Ranges of columns of several matrices of `rows` rows side by side, as shares of their own.
    ///
    /// # Panics
    /// If a matrix has another number of rows, or a range leaves its matrix.
    pub fn side_by_side(rows: usize, parts: &[(&Self, Range<usize>)]) -> Self {
        let width = parts.iter().map(|(_, range)| range.len()).sum();
        let join = |component: fn(&Self) -> ArrayView2<'_, E>| {
            let mut joined = Array2::from_elem((rows, width), E::ZERO);
            let mut start = 0;
            for (shares, range) in parts {
                let source = component(shares).slice_axis_move(Axis(1), Slice::from(range.clone()));
                joined.slice_axis_mut(Axis(1), Slice::from(start..start + range.len())).assign(&source);
                start += range.len();
            }
            joined
        };
        Shares { own: join(Self::own), next: join(Self::next) }
    }

    /// Shares of the matrices put below each other.
    ///
    /// # Panics
    /// If the column counts differ or there is no part.
    pub fn stack(parts: &[Self]) -> Self {
        let join = |component: fn(&Self) -> ArrayView2<'_, E>| {
            let views: Vec<_> = parts.iter().map(component).collect();
            concatenate(Axis(0), &views).expect("stacked shares have equally many columns")
        };
        Shares { own: join(Self::own), next: join(Self::next) }
    }

    /// Shares of a public matrix: component 0 is the matrix, the others are zero.
    pub fn of_public(holder: PartyIndex, public: Array2<E>) -> Self {
        let zero = || Array2::from_elem(public.dim(), E::ZERO);
        match holder.number() {
            0 => Shares { next: zero(), own: public },
            1 => Shares { own: zero(), next: zero() },
            _ => Shares { own: zero(), next: public },
        }
    }

    /// Adds a public number to every element: to component 0, at both of its holders.
    pub(crate) fn add_public(&mut self, holder: PartyIndex, value: E) {
        let component = match holder.number() {
            0 => &mut self.own,
            2 => &mut self.next,
            _ => return,
        };
        component.iter_mut().for_each(|element| *element += value);
    }

    /// Shares of a matrix built from linear combinations of columns: column `c` of the result is
    /// column `pairs[c].0` minus column `pairs[c].1`, transposed so that each pair is one **row**.
    pub fn column_differences(&self, pairs: &[(usize, usize)]) -> Self {
        let rows = self.own.nrows();
        let difference = |all: &Array2<E>| {
            // Columns become adjacent first: each is read for many pairs.
            let mut columns = Array2::from_elem((all.ncols(), rows), E::ZERO);
            columns.assign(&all.t());
            let of = |column: usize| columns.row(column).to_slice().expect("rows are adjacent");
            let mut differences = Vec::with_capacity(pairs.len() * rows);
            for &(left, right) in pairs {
                differences.extend(of(left).iter().zip(of(right)).map(|(&left, &right)| left - right));
            }
            wipe_matrix(&mut columns);
            Array2::from_shape_vec((pairs.len(), rows), differences).expect("lengths match the shape")
        };
        Shares { own: difference(&self.own), next: difference(&self.next) }
    }
}

impl<E: Element> Drop for Shares<E> {
    fn drop(&mut self) {
        wipe_matrix(&mut self.own);
        wipe_matrix(&mut self.next);
    }
}

/// Overwrites a matrix of secrets.
pub(crate) fn wipe_matrix<E: Element>(array: &mut Array2<E>) {
    if let Some(elements) = array.as_slice_memory_order_mut() {
        wipe(elements);
    }
}

/// One server's term of an additive sharing: the sum over the three servers is the value. Products
/// leave the servers with these; they must be reshared before the next product.
pub struct AdditiveShare<E: Element>(pub(crate) Array2<E>);

impl<E: Element> AdditiveShare<E> {
    /// A term of zero everywhere, to add products to.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        AdditiveShare(Array2::from_elem((rows, columns), E::ZERO))
    }

    /// The term, to add local products to.
    pub fn terms_mut(&mut self) -> &mut Array2<E> {
        &mut self.0
    }

    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        self.0.dim()
    }
}

impl<E: Element> Drop for AdditiveShare<E> {
    fn drop(&mut self) {
        wipe_matrix(&mut self.0);
    }
}

/// One server's part of a replicated boolean sharing of a bit matrix, bit-sliced: plane p holds
/// bit p of each of `bits` values, 64 values in a word. Bits past the last value are arbitrary.
pub struct BitShares {
    planes: usize,
    bits: usize,
    own: Vec<u64>,
    next: Vec<u64>,
}

impl BitShares {
    /// Joins the two components of `planes` planes of `bits` bits each.
    ///
    /// # Panics
    /// If a component has another number of words than [`words_of`] the planes.
    pub(crate) fn new(planes: usize, bits: usize, own: Vec<u64>, next: Vec<u64>) -> Self {
        assert_eq!(own.len(), planes * words_of(bits), "own component has another size");
        assert_eq!(next.len(), own.len(), "the two components have different sizes");
        BitShares { planes, bits, own, next }
    }

    /// The number of planes.
    pub fn planes(&self) -> usize {
        self.planes
    }

    /// The number of bits in a plane.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Component i of server i, plane after plane.
    pub fn own(&self) -> &[u64] {
        &self.own
    }

    /// Component i + 1 of server i, plane after plane.
    pub fn next(&self) -> &[u64] {
        &self.next
    }

    pub(crate) fn range(&self, plane: usize) -> std::ops::Range<usize> {
        let words = words_of(self.bits);
        plane * words..(plane + 1) * words
    }

    /// The chosen planes, copied in the order given.
    pub(crate) fn select(&self, planes: impl IntoIterator<Item = usize>) -> Self {
        let planes = planes.into_iter();
        let words = planes.size_hint().0 * words_of(self.bits);
        let (own, next) = (Vec::with_capacity(words), Vec::with_capacity(words));
        let mut chosen = BitShares { planes: 0, bits: self.bits, own, next };
        for plane in planes {
            chosen.own.extend_from_slice(&self.own[self.range(plane)]);
            chosen.next.extend_from_slice(&self.next[self.range(plane)]);
            chosen.planes += 1;
        }
        chosen
    }

    /// All planes, and all of them once more.
    pub(crate) fn twice(&self) -> Self {
        self.select((0..self.planes).chain(0..self.planes))
    }

    /// Reads one plane of `planes * bits` bits as planes of their own.
    ///
    /// # Panics
    /// If there are not that many bits.
    pub fn into_planes(mut self, planes: usize, bits: usize) -> Self {
        let own = bits::unpack(std::mem::take(&mut self.own), planes, bits);
        let next = bits::unpack(std::mem::take(&mut self.next), planes, bits);
        BitShares::new(planes, bits, own, next)
    }

    /// Complements planes: component 0 is flipped at both of its holders.
    pub(crate) fn flip_planes(&mut self, holder: PartyIndex, planes: Range<usize>) {
        let words = words_of(self.bits);
        let component = match holder.number() {
            0 => &mut self.own,
            2 => &mut self.next,
            _ => return,
        };
        component[planes.start * words..planes.end * words].iter_mut().for_each(|word| *word = !*word);
    }

    /// Puts plane `other_plane` of `other` in the place of plane `plane`.
    pub(crate) fn replace_plane(&mut self, plane: usize, other: &BitShares, other_plane: usize) {
        let (target, source) = (self.range(plane), other.range(other_plane));
        self.own[target.clone()].copy_from_slice(&other.own[source.clone()]);
        self.next[target].copy_from_slice(&other.next[source]);
    }
}

impl Drop for BitShares {
    fn drop(&mut self) {
        wipe(&mut self.own);
        wipe(&mut self.next);
    }
}

/// The number of 64-bit words that a plane of `bits` bits takes.
pub fn words_of(bits: usize) -> usize {
    bits.div_ceil(64)
}
