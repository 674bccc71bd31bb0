// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A panic is a bug of this crate. It becomes an oops with the place and the reason.

use crate::abi::Text;
use core::panic::PanicInfo;

unsafe extern "C" {
    fn virtio_irq_rs_panic(text: *const u8, len: usize) -> !;
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut text = Text::EMPTY;
    text.set(info);
    let words = text.as_bytes();
    // SAFETY: `words` is readable for its length for as long as the function runs, which is for ever.
    unsafe { virtio_irq_rs_panic(words.as_ptr(), words.len()) }
}
