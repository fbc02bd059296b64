//! Products with secret weights: a dense matrix, or one kernel for all windows of an image.
//!
//! Both are the same: for each of `groups` groups and each of `positions` positions, the `inner`
//! numbers of a window are multiplied by the group's matrix `[inner, outer]`, and a bias is added to
//! each of the `outer` results. A dense product has one group and one position whose window is the
//! whole value. A convolution is never written out as a dense matrix.

use ndarray::{Array1, Array2, Array3, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::ProgramError;
use crate::{erase::erase, limits::MAXIMUM_SIZE};

/// A convolution over one or two dimensions; one dimension is a height of 1.
///
/// Values are `[channels, height, width]`. Output channel `o` of group `g` is made of the input
/// channels of group `g`; with as many groups as channels it is *depthwise*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convolution {
    /// Channels that arrive and that leave.
    pub channels: [usize; 2],
    /// Groups, which divide both numbers of channels.
    pub groups: usize,
    /// Height and width of a channel that arrives.
    pub size: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Distance of two windows, down and right.
    pub strides: [usize; 2],
    /// Distance of two elements of a window, down and right.
    pub dilations: [usize; 2],
    /// Zeros at the top, left, bottom and right.
    pub pads: [usize; 4],
}

impl Convolution {
    /// One factor and one summand for each channel of `positions` numbers.
    #[must_use]
    pub fn per_channel(channels: usize, positions: usize) -> Self {
        Self {
            channels: [channels; 2],
            groups: channels,
            size: [1, positions],
            kernel: [1; 2],
            strides: [1; 2],
            dilations: [1; 2],
            pads: [0; 4],
        }
    }

    /// Height and width of a channel that leaves; zero where the kernel does not fit.
    #[must_use]
    pub fn output_size(&self) -> [usize; 2] {
        [0, 1].map(|axis| {
            let padded = self.size[axis] + self.pads[axis] + self.pads[axis + 2];
            let reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1;
            padded.checked_sub(reach).map_or(0, |rest| rest / self.strides[axis] + 1)
        })
    }

    /// Checks every number; afterwards no product of them overflows.
    pub(crate) fn check(&self, step: usize) -> Result<(), ProgramError> {
        let limit = |name, found: usize, minimum: usize, maximum: usize| {
            if (minimum..=maximum).contains(&found) {
                Ok(())
            } else {
                Err(ProgramError::Limit { step, name, found, minimum, maximum })
            }
        };
        for channels in self.channels {
            limit("number of channels", channels, 1, MAXIMUM_SIZE)?;
        }
        limit("number of groups", self.groups, 1, self.channels[0].min(self.channels[1]))?;
        for channels in self.channels {
            limit("channels left over by the groups", channels % self.groups, 0, 0)?;
        }
        for axis in [0, 1] {
            limit("size of a channel", self.size[axis], 1, MAXIMUM_SIZE)?;
            limit("size of the kernel", self.kernel[axis], 1, MAXIMUM_SIZE)?;
            limit("stride", self.strides[axis], 1, MAXIMUM_SIZE)?;
            limit("dilation", self.dilations[axis], 1, MAXIMUM_SIZE)?;
            limit("padding", self.pads[axis], 0, MAXIMUM_SIZE)?;
            limit("padding", self.pads[axis + 2], 0, MAXIMUM_SIZE)?;
        }
        for windows in self.output_size() {
            limit("number of windows along an axis", windows, 1, MAXIMUM_SIZE)?;
        }
        let area = self.size[0] * self.size[1];
        limit("size of a channel", area, 1, MAXIMUM_SIZE)?;
        limit("number of inputs", self.channels[0] * area, 1, MAXIMUM_SIZE)?;
        let [height, width] = self.output_size();
        limit("number of windows", height * width, 1, MAXIMUM_SIZE)?;
        limit("number of outputs", self.channels[1] * height * width, 1, MAXIMUM_SIZE)
    }
}

/// Weights and biases of an affine step. Overwritten with zero when dropped; no `Debug`, no `Clone`.
pub struct Weights<T: Zeroize> {
    /// For each group a matrix `[inner, outer]`. A window's elements are in the order channel, row,
    /// column, and scale f in fixed point.
    pub matrices: Array3<T>,
    /// One number for each output channel, at scale 2f in fixed point.
    pub bias: Array1<T>,
}

impl<T: Zeroize> Weights<T> {
    /// A dense layer's: `weights` is `[inputs, outputs]`.
    #[must_use]
    pub fn dense(weights: Array2<T>, bias: Array1<T>) -> Self {
        Self { matrices: weights.insert_axis(Axis(0)), bias }
    }
}

impl<T: Zeroize> Drop for Weights<T> {
    fn drop(&mut self) {
        erase(&mut self.matrices);
        erase(&mut self.bias);
    }
}

/// How an affine step reads and writes its values.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    /// Products side by side.
    pub groups: usize,
    /// Numbers of a window.
    pub inner: usize,
    /// Results of a window.
    pub outer: usize,
    /// Windows of each group.
    pub positions: usize,
    windows: Option<Convolution>,
}

impl Affine {
    /// A product with one matrix.
    #[must_use]
    pub fn dense(inputs: usize, outputs: usize) -> Self {
        Self { groups: 1, inner: inputs, outer: outputs, positions: 1, windows: None }
    }

    /// A product with one kernel for all windows; `convolution` has been checked.
    #[must_use]
    pub fn convolution(convolution: Convolution) -> Self {
        let Convolution { channels, groups, kernel, .. } = convolution;
        let [height, width] = convolution.output_size();
        Self {
            groups,
            inner: (channels[0] / groups).saturating_mul(kernel[0]).saturating_mul(kernel[1]),
            outer: channels[1] / groups,
            positions: height * width,
            windows: Some(convolution),
        }
    }

    /// Numbers that arrive.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.windows.map_or(self.inner, |c| c.channels[0] * c.size[0] * c.size[1])
    }

    /// Numbers that leave.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.biases() * self.positions
    }

    /// The number of weights.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.groups.saturating_mul(self.inner).saturating_mul(self.outer)
    }

    /// The number of biases, which is that of output channels.
    #[must_use]
    pub fn biases(&self) -> usize {
        self.groups * self.outer
    }

    /// Multiplications for one sample.
    #[must_use]
    pub fn work(&self) -> usize {
        self.weights().saturating_mul(self.positions)
    }

    /// True for a matrix product of the whole value.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.windows.is_none()
    }

    /// Where the result `outer` of a window stands.
    #[must_use]
    pub fn output(&self, group: usize, outer: usize, position: usize) -> usize {
        (group * self.outer + outer) * self.positions + position
    }

    /// The channel whose bias result number `output` gets.
    #[must_use]
    pub fn channel(&self, output: usize) -> usize {
        output / self.positions
    }

    /// Where each number of a window stands, in the order of the matrix's rows; `None` for a zero
    /// outside of the image.
    pub fn window(&self, group: usize, position: usize) -> impl Iterator<Item = Option<usize>> {
        let places = match &self.windows {
            None => Places::All(0..self.inner),
            Some(windows) => Places::Window { windows: *windows, group, position, taps: 0..self.inner },
        };
        places.into_iter()
    }

    /// The windows of a group at `positions`, for all rows of `values` `[rows, inputs]`, one below the
    /// other: row `r * positions.len() + p` is that of sample `r` at the p-th position.
    pub fn windows<T: Copy>(
        &self,
        group: usize,
        positions: std::ops::Range<usize>,
        values: ArrayView2<'_, T>,
        zero: T,
    ) -> Array2<T> {
        let (rows, count) = (values.nrows(), positions.len());
        let mut gathered = Array2::from_elem((rows * count, self.inner), zero);
        for (place, position) in positions.enumerate() {
            let sources: Vec<Option<usize>> = self.window(group, position).collect();
            for (row, value) in values.outer_iter().enumerate() {
                let mut target = gathered.row_mut(row * count + place);
                for (target, source) in target.iter_mut().zip(&sources) {
                    if let Some(source) = source {
                        *target = value[*source];
                    }
                }
            }
        }
        gathered
    }
}

/// The places of a window.
enum Places {
    All(std::ops::Range<usize>),
    Window { windows: Convolution, group: usize, position: usize, taps: std::ops::Range<usize> },
}

impl Iterator for Places {
    type Item = Option<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::All(range) => range.next().map(Some),
            Self::Window { windows, group, position, taps } => {
                let tap = taps.next()?;
                let [height, width] = windows.size;
                let [kernel_height, kernel_width] = windows.kernel;
                let across = windows.output_size()[1];
                let channel =
                    *group * (windows.channels[0] / windows.groups) + tap / (kernel_height * kernel_width);
                let along = |axis: usize, window: usize, tap: usize| {
                    (window * windows.strides[axis] + tap * windows.dilations[axis])
                        .checked_sub(windows.pads[axis])
                };
                let row = along(0, *position / across, tap / kernel_width % kernel_height);
                let column = along(1, *position % across, tap % kernel_width);
                Some(match (row, column) {
                    (Some(row), Some(column)) if row < height && column < width => {
                        Some((channel * height + row) * width + column)
                    }
                    _ => None,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn windows_by_hand() {
        // Two channels of 2 x 3, kernel 2 x 2, a zero at the left, stride 2 to the right.
        let convolution = Convolution {
            channels: [2, 2],
            groups: 2,
            size: [2, 3],
            kernel: [2, 2],
            strides: [1, 2],
            dilations: [1, 1],
            pads: [0, 1, 0, 0],
        };
        assert_eq!(convolution.check(0), Ok(()));
        let affine = Affine::convolution(convolution);
        assert_eq!((affine.inputs(), affine.outputs(), affine.inner, affine.positions), (12, 4, 4, 2));
        let values = array![[0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]];
        assert_eq!(affine.windows(0, 0..2, values.view(), -1), array![[-1, 0, -1, 3], [1, 2, 4, 5]]);
        assert_eq!(affine.windows(1, 1..2, values.view(), -1), array![[11, 12, 14, 15]]);
    }

    #[test]
    fn a_dense_product_is_one_window() {
        let affine = Affine::dense(3, 2);
        let values = array![[1, 2, 3], [4, 5, 6]];
        assert_eq!(affine.windows(0, 0..1, values.view(), 0), values);
        assert_eq!((affine.output(0, 1, 0), affine.channel(1)), (1, 1));
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        let sound = Convolution::per_channel(3, 4);
        assert_eq!(sound.check(0), Ok(()));
        let refused = |change: fn(&mut Convolution)| {
            let mut convolution = sound;
            change(&mut convolution);
            convolution.check(7).expect_err("must be refused").to_string()
        };
        assert!(refused(|c| c.groups = 0).contains("step 7: number of groups is 0"));
        assert!(refused(|c| c.groups = 2).contains("left over by the groups is 1"));
        assert!(refused(|c| c.channels = [usize::MAX; 2]).contains("number of channels"));
        assert!(refused(|c| c.size = [1 << 16, 1 << 16]).contains("size of a channel is 4294967296"));
        assert!(refused(|c| c.size[1] = usize::MAX).contains("size of a channel"));
        assert!(refused(|c| c.kernel[0] = 0).contains("size of the kernel is 0"));
        assert!(refused(|c| c.kernel[1] = usize::MAX).contains("size of the kernel"));
        assert!(refused(|c| c.strides[0] = 0).contains("stride is 0"));
        assert!(refused(|c| c.dilations[1] = usize::MAX).contains("dilation"));
        assert!(refused(|c| c.pads[3] = usize::MAX).contains("padding"));
        assert!(refused(|c| c.kernel[1] = 5).contains("number of windows along an axis is 0"));
        assert!(refused(|c| c.pads = [60_000; 4]).contains("number of windows"));
    }
}
