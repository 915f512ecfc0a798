// Replies as bytes, and back: a length, a JSON header, and arrays one after the other (see pack.py).

const TYPES = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, u2: Uint16Array, i4: Int32Array };

/** A reply: its header, with each array as {shape, data}. bytes: a Uint8Array that begins at a multiple of 8. */
export function unpack(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const reply = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let at = padded(4 + length);
  for (const [name, [type, shape]] of Object.entries(reply.arrays ?? {})) {
    const size = shape.reduce((product, n) => product * n, 1);
    const width = type === "f2" ? 2 : TYPES[type].BYTES_PER_ELEMENT;
    const own = bytes.slice(at, at + size * width).buffer; // a copy, which begins at 0
    reply[name] = { shape, data: type === "f2" ? halves(new Uint16Array(own)) : new TYPES[type](own) };
    at = padded(at + size * width);
  }
  delete reply.arrays;
  return reply;
}

function padded(n) {
  return Math.ceil(n / 8) * 8;
}

/** float16 numbers as float32: sign, 5 bits of exponent, 10 bits of fraction. */
function halves(bits) {
  return Float32Array.from(bits, (b) => {
    const sign = b & 0x8000 ? -1 : 1, exponent = (b >> 10) & 31, fraction = b & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : (fraction / 1024) * 2 ** -14);
  });
}

/** One matrix of a larger array: that at index i of its first axis. */
export function part(array, i) {
  const shape = array.shape.slice(1);
  const size = shape.reduce((product, n) => product * n, 1);
  return { shape, data: array.data.subarray(i * size, (i + 1) * size) };
}
