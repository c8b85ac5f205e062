"""One script a data set: fetch it, check it, pack it for `fslib.data.open_dataset`.

    python -m data_scripts.cifar_fs --root data
    python -m data_scripts.flowers102 --root data
    python -m data_scripts.own_images FOLDER --name my_photos --root data
    python -m data_scripts.glove --pack data/cifar_fs --from glove.6B.zip

Nothing is unpickled without a checksum and a list of permitted types, nothing from an archive is
written to a path that the archive chose, and a pack appears whole or not at all.
"""
