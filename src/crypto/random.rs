//! Random bytes from the cryptography provider.

use std::io;

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use crate::crypto::tls::provider;

/// Fills `bytes` with cryptographically secure random bytes. The provider asks the kernel directly
/// and needs no device file, which the empty root directory of a static binary does not have.
///
/// # Errors
/// The kernel has no randomness.
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let filled = provider().secure_random.fill(bytes);
    filled.map_err(|_| io::Error::other("the kernel has no randomness"))
}

/// `N` random bytes in hexadecimal.
pub(crate) fn hex<const N: usize>() -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; N]);
    fill(bytes.as_mut_slice())?;
    Ok(Zeroizing::new(HEXLOWER.encode(bytes.as_slice())))
}
