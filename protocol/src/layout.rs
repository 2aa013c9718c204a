//! Records: structures whose bytes are shared, each with a description that `docs/wire.md` is compared with.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A field of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset_bytes: usize,
    pub len_bytes: usize,
}

/// A record, by the name of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub name: &'static str,
    pub len_bytes: usize,
    pub fields: &'static [Field],
}

/// A structure whose bytes are shared: little-endian, unaligned, without padding.
pub trait Record: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Copy {
    const LAYOUT: Layout;

    /// The record that `bytes` begin with, and what follows it. None where they are too few.
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        Self::read_from_prefix(bytes).ok()
    }
}

/// Length of the field that `_field` leads to.
pub(crate) const fn field_bytes<T, F>(_field: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Defines a [`Record`] of the length that stands behind its name.
macro_rules! record {
    ($(#[$attribute:meta])* pub struct $name:ident: $len:literal {
        $($(#[$field_attribute:meta])* pub $field:ident: $type:ty,)+
    }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout, zerocopy::Unaligned)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_attribute])* pub $field: $type,)+
        }

        const _: () = assert!(size_of::<$name>() == $len);

        impl $crate::layout::Record for $name {
            const LAYOUT: $crate::layout::Layout = $crate::layout::Layout {
                name: stringify!($name),
                len_bytes: $len,
                fields: &[$($crate::layout::Field {
                    name: stringify!($field),
                    offset_bytes: std::mem::offset_of!($name, $field),
                    len_bytes: $crate::layout::field_bytes(|whole: &$name| &whole.$field),
                }),+],
            };
        }

        impl Default for $name {
            /// All bytes zero.
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }
    };
}
pub(crate) use record;

/// Defines numbers that are shared, as an enum with the number of each and a way back from numbers that the other side sent.
macro_rules! numbers {
    ($(#[$attribute:meta])* pub enum $name:ident: $type:ty {
        $($(#[$variant_attribute:meta])* $variant:ident = $number:literal,)+
    }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($type)]
        pub enum $name {
            $($(#[$variant_attribute])* $variant = $number,)+
        }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant),+];

            pub const fn number(self) -> $type {
                self as $type
            }

            /// None for a number that this side does not know.
            pub const fn from_number(number: $type) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use numbers;
