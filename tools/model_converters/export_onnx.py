"""Write the plain student as an ONNX graph; the same as `dskd onnx`."""

from dskd_mm.cli.onnx import main

if __name__ == '__main__':
    main()
