//! Random bytes from the cryptography provider.

use std::io;

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use crate::crypto::tls::provider;

/// Fills `bytes` with randomness that nobody can foresee: the provider's, which asks the kernel itself and so needs no
/// device file, as an empty root of a static binary has none.
///
/// # Errors
///
/// The kernel gives none.
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let filled = provider().secure_random.fill(bytes);
    filled.map_err(|_| io::Error::other("the kernel gives no randomness"))
}

/// So many random bytes, as text of twice the length.
pub(crate) fn hex<const N: usize>() -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; N]);
    fill(bytes.as_mut_slice())?;
    Ok(Zeroizing::new(HEXLOWER.encode(bytes.as_slice())))
}
