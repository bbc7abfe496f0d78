"""hyfuse: which frozen speech representations, fused how, recognise emotion best?

Two stages share nothing but the store:

* Stage 1 turns recordings into embeddings, once per corpus, encoder and condition:
  ``corpora`` (manifests, cards, protocols) and ``audio`` (decoding) feed ``encoders`` (frozen models); ``extraction``
  runs them block by block into a ``store`` (Zarr).
* Stage 2 reads stores and never touches audio or encoders: ``fusion`` (the small networks), ``training`` (the engine
  and the grid of pairs), ``evaluation`` (statistics), ``studies`` and ``reports`` (tables, plots, pages).

Both are used by ``deployment`` (a result as a model that predicts) and ``guidance`` (what is here, what comes next, how long it
takes). Everybody may use ``errors``, ``locations`` (folders and object storage), ``files`` (atomic writes, locks), ``processes``
and ``plugins`` (encoders and fusions of other packages).

Start reading at ``corpora/manifest.py`` (what an utterance is), ``encoders/base.py`` (what an encoder promises),
``store/embeddings.py`` (what is kept) and ``training/grid.py`` (what is compared).

Shape letters used in every comment and docstring:

====== =======================================================================
letter meaning
====== =======================================================================
N      utterances of a corpus, in manifest order
B      utterances in a batch
T      frames of an utterance
R      representations of an encoder
D      features of a representation (Dl, Dr: of the left and the right one)
H      heads trained together in one stack (folds x seeds of one pair)
C      classes
K      dimensions of emotion; in statistics, speakers
S      seeds
E      features before the output layer of a head
====== =======================================================================

This package never prints and never imports ``hyfuse_cli``; importing it loads nothing heavy.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
