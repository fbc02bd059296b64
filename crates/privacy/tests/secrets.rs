//! Types that must not be printed, copied or compared in varying time. Checked when this compiles.

use std::fmt::{Debug, Display};

use concilium_privacy::{Lookup, NoiseShare, Reservation, ResultBytes};

/// Does not compile if the type implements the trait: the call then fits two implementations.
macro_rules! assert_lacks {
    ($type:ty: $($forbidden:path),+) => {$(
        const _: fn() = || {
            trait Unique<Marker> {
                fn call() {}
            }
            struct Forbidden;
            impl<T: ?Sized> Unique<()> for T {}
            impl<T: ?Sized + $forbidden> Unique<Forbidden> for T {}
            <$type as Unique<_>>::call();
        };
    )+};
}

assert_lacks!(NoiseShare: Debug, Display, Clone, PartialEq);
assert_lacks!(ResultBytes: Debug, Display, Clone, PartialEq);
assert_lacks!(Lookup: Debug, Display, Clone, PartialEq);
assert_lacks!(Reservation: Clone);

/// What crosses threads does so, and the noise pool can be shared.
#[test]
fn threads_can_share_what_they_must() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<concilium_privacy::NoisePool>();
    is_shared::<concilium_privacy::RedbLedger>();
    is_shared::<Reservation>();
    is_shared::<NoiseShare>();
}
