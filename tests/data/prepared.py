"""Small TFDS datasets in ArrayRecord, written with the features of TFDS's own builders."""
import io
import pathlib

import cv2
import numpy as np


def features_of(name, data_dir):
  """The features of a builder of the installed package; downloads nothing."""
  import tensorflow_datasets as tfds
  return tfds.builder(name, data_dir=data_dir).info.features


def png(pixels):
  """A file with an array (H, W, 3 or 1) as PNG: TFDS takes files where TensorFlow isn't there."""
  encoded = cv2.imencode(".png", np.asarray(pixels, np.uint8))[1]
  return io.BytesIO(encoded.tobytes())


def prepare(folder, features, splits, files=1):
  """Writes NAME[/CONFIG]/VERSION of {split: examples}, so many files a split; its folder."""
  import tensorflow_datasets as tfds
  from array_record.python import array_record_module
  from tensorflow_datasets.core import example_serializer
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  name, infos = folder.parent.name, []
  for split, examples in splits.items():
    parts = np.array_split(np.arange(len(examples)), files)
    for number, part in enumerate(parts):
      writer = array_record_module.ArrayRecordWriter(
          str(folder / f"{name}-{split}.array_record-{number:05d}-of-{files:05d}"), "group_size:1")
      for i in part:
        writer.write(serializer.serialize_example(features.encode_example(examples[i])))
      writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record")
    infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[len(part) for part in parts],
                                     num_bytes=0, filename_template=template))
  tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=infos,
                                     check_data=False)
  return folder
