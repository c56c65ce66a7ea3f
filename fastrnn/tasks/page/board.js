// A drawing board of pixels, for mouse, finger, pen and keyboard.

const DIRECTIONS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

class Board {
  /**
   * @param canvas the element; it is in a .board with an element of role status.
   * @param shape {height, width} in pixels.
   * @param radius of the pen, in pixels.
   * @param stroke what the pen does: stroke(pixel, coverage, erase) with coverage in (0, 1].
   * @param draw paints the board's content: draw(canvas).
   * @param describe a pixel in words, for the status: describe(pixel).
   */
  constructor(canvas, { height, width }, { radius, stroke, draw, describe }) {
    Object.assign(this, { canvas, height, width, radius, stroke, describe });
    this.paint = draw;
    this.row = Math.floor(height / 2);
    this.column = Math.floor(width / 2);
    this.status = canvas.closest(".board").querySelector("[role=status]");
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => (this.last = null));
    }
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("keydown", (event) => this.key(event));
    for (const change of ["focus", "blur"]) canvas.addEventListener(change, () => this.draw());
  }

  /** Paints the content and, while the keyboard is in use, the cursor. */
  draw() {
    this.paint(this.canvas);
    if (!this.canvas.matches(":focus-visible")) return;
    paintMark(this.canvas, this.row * this.width + this.column, "focus");
  }

  /** Where a pointer is: row and column, whose whole numbers are the pixels' middles. */
  place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((clientY - box.top) / box.height) * this.height - 0.5,
      ((clientX - box.left) / box.width) * this.width - 0.5,
    ];
  }

  press(event) {
    if (event.button > 2 || !event.isPrimary) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.erasing = event.button === 2 || event.button === 5 || event.buttons === 32;
    this.last = this.place(event);
    [this.row, this.column] = this.last.map((x, axis) =>
      Math.min(Math.max(Math.round(x), 0), (axis ? this.width : this.height) - 1)
    );
    this.touch(this.last, this.erasing);
  }

  drag(event) {
    if (!this.last || !event.isPrimary) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) {
      const next = this.place(each);
      const parts = Math.ceil(2 * Math.hypot(next[0] - this.last[0], next[1] - this.last[1]));
      for (let part = 1; part <= parts; part++) {
        const between = next.map((x, i) => this.last[i] + ((x - this.last[i]) * part) / parts);
        this.touch(between, this.erasing);
      }
      this.last = next;
    }
  }

  key(event) {
    const erase = event.key === "Delete" || event.key === "Backspace";
    const direction = DIRECTIONS[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (!direction && !erase && event.key !== " ") return;
    event.preventDefault();
    if (direction) {
      this.row = Math.min(Math.max(this.row + direction[0], 0), this.height - 1);
      this.column = Math.min(Math.max(this.column + direction[1], 0), this.width - 1);
    }
    if (!direction || event.shiftKey) this.touch([this.row, this.column], erase);
    this.draw();
    const { row, column } = this;
    const what = this.describe(row * this.width + column);
    this.status.textContent = `Row ${row + 1}, column ${column + 1}: ${what}`;
  }

  /** The pen at a place: it covers the pixel there and, in part, those that it reaches. */
  touch([row, column], erase) {
    const reach = Math.ceil(this.radius + 0.5);
    const [middle, centre] = [Math.round(row), Math.round(column)];
    for (let r = middle - reach; r <= middle + reach; r++) {
      for (let c = centre - reach; c <= centre + reach; c++) {
        if (r < 0 || r >= this.height || c < 0 || c >= this.width) continue;
        const covered = Math.min(this.radius + 0.5 - Math.hypot(r - row, c - column), 1);
        const own = r === middle && c === centre;
        if (own || covered > 0) this.stroke(r * this.width + c, own ? 1 : covered, erase);
      }
    }
  }
}
