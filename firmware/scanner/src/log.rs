//! Log lines that cost nothing where there is no defmt.

macro_rules! info {
    ($line:literal $(, $value:expr)*) => {{
        #[cfg(feature = "defmt")]
        defmt::info!($line $(, $value)*);
        #[cfg(not(feature = "defmt"))]
        let _ = ($(&$value,)*);
    }};
}

macro_rules! warning {
    ($line:literal $(, $value:expr)*) => {{
        #[cfg(feature = "defmt")]
        defmt::warn!($line $(, $value)*);
        #[cfg(not(feature = "defmt"))]
        let _ = ($(&$value,)*);
    }};
}

pub(crate) use {info, warning};
