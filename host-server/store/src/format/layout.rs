//! Layouts as values: so that `docs/format.md`, which people read, can be compared with the types, which machines do.

/// A field of a structure at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset_bytes: usize,
    pub len_bytes: usize,
}

/// A structure at rest, by the name that the format document gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub name: &'static str,
    pub len_bytes: usize,
    pub fields: &'static [Field],
}

/// Length of the field that `_field` leads to.
pub(super) const fn field_bytes<T, F>(_field: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// The [`Layout`] of a structure; a field that is left out shows as a gap.
macro_rules! layout {
    ($name:literal, $type:ident { $($field:ident),+ $(,)? }) => {
        $crate::format::layout::Layout {
            name: $name,
            len_bytes: size_of::<$type>(),
            fields: &[$($crate::format::layout::Field {
                name: stringify!($field),
                offset_bytes: std::mem::offset_of!($type, $field),
                len_bytes: $crate::format::layout::field_bytes(|whole: &$type| &whole.$field),
            }),+],
        }
    };
}
pub(super) use layout;
