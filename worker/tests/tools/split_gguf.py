"""Splits a GGUF file into two shards, as llama.cpp's gguf-split does: split_gguf.py FILE FOLDER"""

import sys

from gguf import GGUFReader, GGUFValueType, GGUFWriter

source, folder = sys.argv[1:]
reader = GGUFReader(source)
tensors = reader.tensors
half = len(tensors) // 2
for number, part in enumerate((tensors[:half], tensors[half:])):
    shard = GGUFWriter(f"{folder}/m-0000{number + 1}-of-00002.gguf", reader.fields["general.architecture"].contents())
    if number == 0:
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            kind = field.types[0]
            inner = field.types[1] if kind == GGUFValueType.ARRAY else None
            shard.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    shard.add_uint16("split.no", number)
    shard.add_uint16("split.count", 2)
    shard.add_int32("split.tensors.count", len(tensors))
    for tensor in part:
        shard.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    shard.write_header_to_file()
    shard.write_kv_data_to_file()
    shard.write_tensors_to_file()
    shard.close()
