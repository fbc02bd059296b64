//! Loops compiled for the widest vectors of the machine.
//!
//! A function inside of [`vectorised!`] is compiled three times: for AVX-512, for AVX2, and for every
//! machine of the target. The first of them that the processor can run is called. Bodies are ordinary
//! safe code and the same for all, so that there is nothing to keep alike by hand.
//!
//! # Invariants
//! A copy with target features is called after the processor was asked for exactly these features.

macro_rules! vectorised {
    ($(
        $(#[$meta:meta])*
        $visibility:vis fn $name:ident $(<$element:ident: $bound:path>)?
            ($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        #[allow(unsafe_code)]
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name $(<$element: $bound>)? ($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn portable $(<$element: $bound>)? ($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2")]
                fn wide $(<$element: $bound>)? ($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }
                #[target_feature(enable = "avx2,bmi1,bmi2")]
                fn narrow $(<$element: $bound>)? ($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }
                let bits = is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2");
                if bits
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has what the copy was compiled for.
                    return unsafe { wide($($argument),*) };
                }
                if bits && is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { narrow($($argument),*) };
                }
            }
            portable($($argument),*)
        }
    )*};
}

pub(crate) use vectorised;
